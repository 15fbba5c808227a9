"""Makes a folder that loads by itself of a committed checkpoint, and verifies that it does."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.core.errors import SweepError
from sweeps.results.intervals import FEWEST_PROMPTS, of_loss
from trainers.data.dataset import PreparedData
from trainers.model import attention
from trainers.model.loading import choose, choose_for, load_base, no_bars
from trainers.model.lora import in_training_type
from trainers.model.source import resolve_path
from trainers.model.stopping import GENERATION, write_generation_config
from trainers.model.tokenizer import load_tokenizer, set_eos
from trainers.sft import fsdp
from trainers.trial import checkpoint
from trainers.trial.evaluation import Measured, rows_for
from trainers.trial.meters import free_memory
from trainers.trial.ranks import Ranks

if TYPE_CHECKING:
    import torch

# Relative. In float32 the same weights, rows and device give the same sum, but for the order of
# additions. In half precision each addition is rounded, and other numbers of rows take other
# kernels: docs/gpu.md says how large a difference was seen.
TOLERANCE = 1e-5
HALF_TOLERANCE = 2e-3
_LEFT_OUT = {
    *(checkpoint.MANIFEST, "optimizer.pt", "scheduler.pt", "scaler.pt"),
    *("trainer_state.json", "README.md"),
}
_RNG_STATES = "rng_state"  # the files of all ranks begin so


def assemble(
    source: Path,
    target: Path,
    spec: ModelSpec,
    *,
    stops: Sequence[int] = (),
    eos_token: str | None = None,
) -> None:
    """Copy the weights of checkpoint `source` into `target`, and what generation needs beside them.

    Args:
        stops: ids of the tokens at which generation stops, beside the base model's.
        eos_token: trainer.eos_token.

    Raises:
        CheckpointError: `source` is not whole.
    """
    manifest = checkpoint.verify(source)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in manifest.files:
        if name in _LEFT_OUT or name.startswith(_RNG_STATES):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    _save_tokenizer(target, spec, eos_token)
    write_generation_config(target, spec, stops)


def _save_tokenizer(target: Path, spec: ModelSpec, eos_token: str | None) -> None:
    tokenizer = load_tokenizer(spec)
    if eos_token is not None:
        set_eos(tokenizer, eos_token)
    tokenizer.save_pretrained(str(target))


def load_trained(
    folder: Path,
    spec: ModelSpec,
    device: str,
    *,
    place: str | None = None,
    autocast: torch.dtype | None = None,
) -> Any:
    """Load the model in `folder` as it was trained: an adapter on its base, or a whole model.

    Args:
        place: the device of the weights, if not `device`.
        autocast: the type that the model was trained in.
    """
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        base = load_base(spec, device, place=place)
        # PEFT asks by the old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
        return in_training_type(adapted, autocast)
    from transformers import AutoModelForCausalLM

    attention.register()
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
    """Load the model in `folder` and measure it again; on a test split too, beside the base model.

    Args:
        ranks: the processes that share out the model, which may not fit on one device; each calls
            this.

    Raises:
        SweepError: the eval_loss is not `expected`, which was reported.
    """

    def ready(model: Any) -> Any:
        return fsdp.shard(model, device) if ranks is not None else model

    place = "cpu" if ranks is not None else device
    chosen = choose_for(train, device)
    autocast = chosen.autocast
    model = ready(load_trained(folder, train.model, device, place=place, autocast=autocast))
    rows = rows_for(data.evaluation, model, train.model)
    measured = rows.measure(model, ranks, autocast=autocast)
    tolerance = HALF_TOLERANCE if chosen.is_half else TOLERANCE
    if not math.isclose(measured.loss, expected, rel_tol=tolerance, abs_tol=tolerance):
        raise SweepError(
            f"the best checkpoint, loaded again, has eval_loss {measured.loss:.6f}, but "
            f"{expected:.6f} was reported when it was saved. Do not use it; its files are left in "
            f"{folder} for a look."
        )
    result = {"eval_loss": measured.loss, "eval_tokens": float(measured.tokens)}
    if data.test is not None:
        test = rows_for(data.test, model, train.model)
        result |= _tested(test.measure(model, ranks, autocast=autocast), data)
        del model
        free_memory()
        # Loaded afresh: some adapters change the base as they start, and leave it changed.
        base = ready(load_base(train.model, device, trains_base=train.trains_base, place=place))
        result["base_test_loss"] = test.measure(base, ranks, autocast=autocast).loss
    return result


def _tested(measured: Measured, data: PreparedData) -> dict[str, float]:
    """The loss on the test split, with the ends of its interval if there are prompts enough."""
    found = {"test_loss": measured.loss, "test_tokens": float(measured.tokens)}
    if measured.rows is None or data.test_prompts is None:
        return found
    sums, tokens = measured.rows.astype(np.float64)
    prompts = len(np.unique(data.test_prompts))
    found |= {"test_rows": float(len(tokens)), "test_prompts": float(prompts)}
    if prompts < FEWEST_PROMPTS:
        return found
    interval = of_loss(sums, tokens, data.test_prompts)
    return found | {"test_low": interval.low, "test_high": interval.high}


def merge(
    folder: Path,
    target: Path,
    spec: ModelSpec,
    device: str = "cpu",
    *,
    eos_token: str | None = None,
) -> None:
    """Fold the adapter in `folder` into its base and save one plain model in `target`.

    A quantized base is loaded unquantized, so the result differs a little from what was measured.

    Raises:
        SweepError: there is no adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise SweepError(f"{folder} holds no adapter: nothing to merge. It loads as it is.")
    merged = load_trained(folder, replace(spec, quantization="none"), device).merge_and_unload()
    with no_bars():
        merged.save_pretrained(str(target))
    _save_tokenizer(target, spec, eos_token)
    if (folder / GENERATION).is_file():  # older ones have none
        shutil.copyfile(folder / GENERATION, target / GENERATION)


def base_name(spec: ModelSpec) -> str:
    """The base model's name for a reader: a Hub id, or the name of its folder."""
    path = Path(resolve_path(spec.path))
    return path.name if path.exists() else spec.path
