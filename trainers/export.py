"""From a committed checkpoint to a folder that loads by itself, and proof that it does."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.errors import SweepError
from sweeps.spec import ModelSpec, TrainSpec
from trainers import checkpoint, sharding
from trainers.adapters import in_training_type
from trainers.data import PreparedData
from trainers.evaluation import rows_for
from trainers.guards import free_memory
from trainers.model import choose, load_base, load_tokenizer, no_bars, resolve_path
from trainers.ranks import Ranks

# Relative; the same weights, rows and device give the same sum, but for a GPU's order of additions.
TOLERANCE = 1e-5
_STATE_FILES = {checkpoint.MANIFEST, "optimizer.pt", "scheduler.pt", "scaler.pt"}
_RNG_STATES = "rng_state"  # what the names of all of them begin with: each rank has one


def assemble(source: Path, target: Path, spec: ModelSpec) -> None:
    """Copy the weights of checkpoint `source` into `target`, and the base's tokenizer beside them.

    Raises:
        CheckpointError: `source` is not whole.
    """
    manifest = checkpoint.verify(source)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in manifest.files:
        if name in _STATE_FILES or name in ("trainer_state.json", "README.md"):
            continue
        if name.startswith(_RNG_STATES):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    load_tokenizer(spec).save_pretrained(str(target))


def load_trained(folder: Path, spec: ModelSpec, device: str, *, place: str | None = None) -> Any:
    """The model in `folder` as it was trained: an adapter on its base, or a whole model.

    Args:
        place: where the weights lie, if not on the device that they are for.
    """
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        base = load_base(spec, device, place=place)
        return in_training_type(PeftModel.from_pretrained(base, str(folder), is_trainable=True))
    from transformers import AutoModelForCausalLM

    with no_bars():
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            use_safetensors=True,
            dtype="auto",
            attn_implementation=choose(spec, device, trains_base=True).attn_implementation,
            trust_remote_code=spec.trust_remote_code,
        )
    return model.to(place or device)


def prove(
    folder: Path,
    train: TrainSpec,
    data: PreparedData,
    *,
    expected: float,
    device: str,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Load what lies in `folder` and measure it again; with a test split, that too, base beside it.

    Args:
        ranks: that share the model out among their devices, as it may not fit on one; each calls
            this.

    Raises:
        SweepError: the eval_loss is not the one that was reported.
    """

    def ready(model: Any) -> Any:
        return sharding.shard(model, device) if ranks is not None else model

    place = "cpu" if ranks is not None else device
    model = ready(load_trained(folder, train.model, device, place=place))
    measured = rows_for(data.evaluation, model, train.model).measure(model, ranks)
    if not math.isclose(measured.loss, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise SweepError(
            f"the best checkpoint, loaded again, has eval_loss {measured.loss:.6f}, but "
            f"{expected:.6f} was reported when it was saved. Do not use it; its files are left in "
            f"{folder} for a look."
        )
    result = {"eval_loss": measured.loss, "eval_tokens": float(measured.tokens)}
    if data.test is not None:
        test = rows_for(data.test, model, train.model)
        result["test_loss"] = test.measure(model, ranks).loss
        result["test_tokens"] = float(test.tokens)
        del model
        free_memory()
        # Loaded afresh: taking the adapter off leaves what some change in the base as they start.
        trains_base = train.peft.get("method") == "full"
        base = ready(load_base(train.model, device, trains_base=trains_base, place=place))
        result["base_test_loss"] = test.measure(base, ranks).loss
    return result


def merge(folder: Path, target: Path, spec: ModelSpec, device: str = "cpu") -> None:
    """Fold the adapter in `folder` into its base and save one plain model in `target`.

    A quantized base is taken unquantized, so the result is not quite what was measured.

    Raises:
        SweepError: there is no adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise SweepError(f"{folder} holds no adapter: nothing to merge. It loads as it is.")
    merged = load_trained(folder, replace(spec, quantization="none"), device).merge_and_unload()
    with no_bars():
        merged.save_pretrained(str(target))
    load_tokenizer(spec).save_pretrained(str(target))


def base_name(spec: ModelSpec) -> str:
    """The base as a reader knows it: a Hub id, or the folder's own name."""
    path = Path(resolve_path(spec.path))
    return path.name if path.exists() else spec.path
