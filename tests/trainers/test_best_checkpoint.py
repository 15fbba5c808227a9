"""best/: what is put together loads by itself, measures what was reported, or is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from support import packs
from support.training import (
    LORA,
    REFERENCE,
    TINY,
    Recorder,
    Run,
    prepared,
    reference,
    run,
    train_spec,
)

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import SweepError
from sweeps.results.intervals import of_loss
from trainers.best_checkpoint import assemble, base_name, load_trained, merge, prove
from trainers.data.dataset import PreparedData
from trainers.model.loading import load_base
from trainers.trial.checkpoint import CheckpointError
from trainers.trial.evaluation import Rows, rows_for

PLACED = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def last_loss(trained: Run) -> float:
    return trained.seen.reports[-1].metrics["eval_loss"]


def measured(model: Any) -> float:
    return rows_for(prepared().evaluation, model, TINY).measure(model).loss


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference trial's last checkpoint, put together. For looking only."""
    target = tmp_path_factory.mktemp("export") / "best"
    assemble(reference().checkpoints[6], target, TINY, stops=(4, 2), eos_token="<|im_end|>")
    return target


@pytest.fixture
def best(held: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(held, tmp_path / "best"))


def test_only_what_is_needed_to_load_is_put_together(held: Path) -> None:
    assert {path.name for path in held.iterdir()} == PLACED


def test_what_was_there_before_is_gone(best: Path) -> None:
    (best / "model.safetensors").write_bytes(b"of an earlier best")
    assemble(reference().checkpoints[4], best, TINY)
    assert {path.name for path in best.iterdir()} == PLACED


@pytest.mark.parametrize("step", [2, 6])
def test_loaded_again_it_measures_what_was_reported(tmp_path: Path, step: int) -> None:
    reported = {r.step: r.metrics["eval_loss"] for r in reference().seen.reports}
    assemble(reference().checkpoints[step], tmp_path, TINY)
    result = prove(tmp_path, REFERENCE, prepared(), expected=reported[step], device="cpu")
    assert result == {"eval_loss": reported[step], "eval_tokens": 570.0}


def test_changed_weights_are_refused(best: Path) -> None:
    file = best / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = weights[name] + 0.05
    save_file(weights, file, metadata={"format": "pt"})
    message = rf"has eval_loss \d\.\d+, but {last_loss(reference()):.6f} was reported .*{best}"
    with pytest.raises(SweepError, match=message):
        prove(best, REFERENCE, prepared(), expected=last_loss(reference()), device="cpu")


def test_a_loss_that_is_not_finite_is_refused(best: Path) -> None:
    file = best / "adapter_model.safetensors"
    weights = {name: weight * float("nan") for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SweepError, match="has eval_loss nan"):
        prove(best, REFERENCE, prepared(), expected=last_loss(reference()), device="cpu")


def test_a_damaged_checkpoint_is_refused_and_the_old_best_stays(best: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(reference().checkpoints[6], tmp_path / "step-000006"))
    (source / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000006/adapter_model\.safetensors is not"):
        assemble(source, best, TINY)
    assert {path.name for path in best.iterdir()} == PLACED


def test_peft_and_transformers_load_it(held: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = last_loss(reference())
    assert measured(PeftModel.from_pretrained(load_base(TINY, "cpu"), str(held))) == expected
    assert measured(AutoModelForCausalLM.from_pretrained(str(held))) == expected
    assert AutoTokenizer.from_pretrained(str(held)).chat_template is not None


def test_merged_it_is_one_plain_model_with_the_same_loss(held: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merge(held, tmp_path, TINY, eos_token="<|im_end|>")
    assert not [one for one in said if issubclass(one.category, FutureWarning)]
    assert not (tmp_path / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path), use_safetensors=True)
    assert measured(plain) == pytest.approx(last_loss(reference()), abs=1e-4)
    assert len(AutoTokenizer.from_pretrained(str(tmp_path))) == 4096
    for folder in (held, tmp_path):  # where it stops
        assert GenerationConfig.from_pretrained(str(folder)).eos_token_id == [4, 2]
        assert AutoTokenizer.from_pretrained(str(folder)).eos_token == "<|im_end|>"
    assert plain.generation_config.eos_token_id == [4, 2]


def test_there_is_nothing_to_merge_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="holds no adapter: nothing to merge"):
        merge(tmp_path, tmp_path / "merged", TINY)
    assert not (tmp_path / "merged").exists()


def test_the_base_has_a_name() -> None:
    assert base_name(TINY) == "tiny_llama"
    assert base_name(ModelSpec(path="owner/model")) == "owner/model"


@pytest.fixture
def with_test_split() -> PreparedData:
    """As if half of the evaluation rows had been set aside."""
    rows = prepared().evaluation
    half = len(rows) // 2
    prompts = np.arange(half) % (half - 1)  # the first and the last row share one
    return replace(prepared(), test=rows.select(range(half)), test_prompts=prompts)


@pytest.mark.slow
def test_the_test_split_is_measured_beside_the_base(
    held: Path, with_test_split: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    measure = Rows.measure

    def counting(self: Rows, *args: Any, **more: Any) -> Any:
        sizes.append(self.tokens)
        return measure(self, *args, **more)

    test = rows_for(with_test_split.test, base := load_base(TINY, "cpu"), TINY)
    measured = test.measure(load_trained(held, TINY, "cpu"))
    assert measured.rows is not None
    sums, tokens = measured.rows.astype(np.float64)
    interval = of_loss(sums, tokens, with_test_split.test_prompts)  # type: ignore[arg-type]
    expected_base = test.measure(base).loss
    monkeypatch.setattr(Rows, "measure", counting)
    result = prove(held, REFERENCE, with_test_split, expected=last_loss(reference()), device="cpu")
    assert result == {
        "eval_loss": last_loss(reference()),
        "eval_tokens": 570.0,
        "test_loss": measured.loss,
        "test_tokens": float(test.tokens),
        "test_rows": len(tokens),
        "test_prompts": len(tokens) - 1,
        "test_low": interval.low,
        "test_high": interval.high,
        "base_test_loss": expected_base,
    }
    assert sizes == [570, test.tokens, test.tokens]  # it once, the base once
    assert interval.low < measured.loss < interval.high
    few = replace(with_test_split, test_prompts=np.zeros(len(tokens)))
    result = prove(held, REFERENCE, few, expected=last_loss(reference()), device="cpu")
    assert result["test_prompts"] == 1
    assert "test_low" not in result


@pytest.mark.slow
def test_no_trial_measures_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import training

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the test split was asked for {name}")

    data = replace(prepared(), test=Untouchable())
    monkeypatch.setattr(training, "prepared", lambda: data)
    assert run(tmp_path, train_spec(evaluations=1), examples=8).outcome.totals["steps"] == 1


OTHERS = {
    "full": train_spec(peft={"method": "full"}, learning_rate=2e-4),
    "nf4": train_spec(
        peft={**LORA, "method": "qlora"}, model=ModelSpec(path="tiny", quantization="nf4")
    ),
    "dora on nf4": train_spec(
        peft={**LORA, "method": "qlora", "use_dora": True},
        model=ModelSpec(path="tiny", quantization="nf4"),
    ),
    "pissa": train_spec(peft={**LORA, "init_lora_weights": "pissa"}),
    "whole embedding": train_spec(peft={**LORA, "modules_to_save": ["embed_tokens"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_are_proven_too(
    tmp_path: Path, with_test_split: PreparedData, name: str
) -> None:
    spec = OTHERS[name]
    trained = run(tmp_path, spec, Recorder(base=True))
    best, data = tmp_path / "best", with_test_split
    assemble(trained.checkpoints[6], best, spec.model)
    result = prove(best, spec, data, expected=last_loss(trained), device="cpu")
    assert result["eval_loss"] == last_loss(trained)
    base = load_base(spec.model, "cpu")
    base_loss = rows_for(data.evaluation, base, spec.model).measure(base).loss
    assert trained.seen.reports[0].metrics["eval_loss"] == base_loss
    assert result["base_test_loss"] == rows_for(data.test, base, spec.model).measure(base).loss
    assert result["test_loss"] < result["base_test_loss"]
    if name == "full":
        assert {"config.json", "model.safetensors"} <= {path.name for path in best.iterdir()}


@pytest.mark.slow
def test_what_was_trained_under_autocast_is_proven(tmp_path: Path) -> None:
    """As on a GPU: the Trainer wraps the model in autocast, and a loaded one has no wrapper."""
    spec = train_spec(model=ModelSpec(path="tiny", dtype="bfloat16"), bf16=True)
    trained = run(tmp_path, spec)
    assemble(trained.checkpoints[6], tmp_path / "best", spec.model)
    prove(tmp_path / "best", spec, prepared(), expected=last_loss(trained), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["packed", "solo"])
def test_best_names_its_base_by_the_whole_path_and_loads_from_any_folder(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = packs.small(evaluations=1)
    if engine == "packed":
        packs.pack(tmp_path, [spec], examples=8).finish()
    else:
        packs.alone(tmp_path, spec, examples=8)
    saved = packs.task(tmp_path, spec, 0, 8).folder.checkpoints(packs.key(0))
    assemble(next(saved.glob("step-*")), tmp_path / "best", spec.model)
    config = json.loads((tmp_path / "best" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == spec.model.path
    assert Path(spec.model.path).is_absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "best")) is not None
