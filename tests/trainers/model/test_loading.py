"""The base model: found or refused with a way out, in a type and attention that the device has."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import ConfigError, SweepError
from trainers.model import precision
from trainers.model.loading import choose, fingerprint_base, load_base, target_problems
from trainers.model.lora import adapt, lora_config, peft_problems
from trainers.model.source import context_tokens, load_config, resolve_path
from trainers.model.tokenizer import load_tokenizer

TINY = ModelSpec(path="tiny")
CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model in a folder that a test may change."""
    return Path(shutil.copytree(resolve_path("tiny"), tmp_path / "copy"))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Hub that refuses connections, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device with bfloat16, as far as choosing is concerned."""
    monkeypatch.setattr(precision, "_has_gpu", lambda: True)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)


def keys(problems: list[Any]) -> list[str]:
    return [problem.key for problem in problems]


def test_embedded_model_loads_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args) or [])
    model, tokenizer = load_base(TINY, "cpu"), load_tokenizer(TINY)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert tokenizer.pad_token == "<|pad|>"
    assert context_tokens(load_config(TINY)) == 512
    assert asked == []


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("load", [load_config, load_tokenizer, lambda s: load_base(s, "cpu")])
def test_unreachable_model_is_one_error_with_ways_out(load: Any) -> None:
    with pytest.raises(SweepError, match=r"model\.path = nobody/nothing: ") as caught:
        load(ModelSpec(path="nobody/nothing"))
    for way_out in ("model.path", "HF_HOME", "model=tiny", "cannot be reached"):
        assert way_out in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("no_hub")
def test_offline_by_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SweepError, match="HF_HUB_OFFLINE is set"):
        load_config(ModelSpec(path="nobody/nothing"))


def test_gated_and_unknown_models_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.errors as errors

    from trainers.model import hub

    def refused_with(name: str) -> str:
        error = OSError("cannot load")
        cause = getattr(errors, name).__new__(getattr(errors, name))
        error.__cause__ = cause
        with pytest.raises(SweepError) as caught, hub.reading("model", "meta/llama"):
            raise error
        return str(caught.value)

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    gated = refused_with("GatedRepoError")
    assert "Accept its licence at" in gated
    assert "meta/llama" in gated
    assert "HF_TOKEN" in gated
    assert "no such model on the Hub, or a private one" in refused_with("RepositoryNotFoundError")
    assert "not in the revision" in refused_with("RevisionNotFoundError")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_cache_that_takes_nothing_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As in a home that is read-only, or on a full disk."""
    from trainers.model import hub

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    with pytest.raises(SweepError) as caught, hub.reading("model", "meta/llama"):
        try:
            raise OSError(number, os.strerror(number), "/home/ada/.cache")
        except OSError as error:
            raise OSError("PermissionError at /home/ada/.cache") from error
    assert f"({os.strerror(number)}). Set HF_HOME to a folder that can" in str(caught.value)


def test_running_out_of_memory_is_not_called_a_missing_model() -> None:
    from trainers.model import hub

    with (
        pytest.raises(torch.OutOfMemoryError),
        hub.reading("model", resolve_path("tiny"), local=True),
    ):
        raise torch.OutOfMemoryError("full")


def test_wrong_folders_say_what_they_lack(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(SweepError, match=r"safetensors"):
        load_base(ModelSpec(path=str(copy)), "cpu")
    (copy / "config.json").rename(copy / "adapter_config.json")
    with pytest.raises(SweepError, match="holds an adapter, not a base model"):
        load_config(ModelSpec(path=str(copy)))
    (copy / "adapter_config.json").unlink()
    with pytest.raises(SweepError, match=r"has no config\.json"):
        load_config(ModelSpec(path=str(copy)))
    with pytest.raises(SweepError, match="there is no such folder"):
        load_config(ModelSpec(path=f"{copy}/deeper"))


def test_unknown_architecture_is_one_line(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(SweepError, match=r"model\.path = .*lama") as caught:
        load_config(ModelSpec(path=str(copy)))
    assert "\n" not in str(caught.value)


def test_missing_chat_template_file() -> None:
    with pytest.raises(SweepError, match=r"model\.chat_template = no\.jinja: cannot be read"):
        load_tokenizer(ModelSpec(path="tiny", chat_template="no.jinja"))


def test_cpu_computes_in_float32_with_sdpa() -> None:
    chosen = choose(TINY, "cpu")
    assert (chosen.dtype, chosen.attn_implementation) == (torch.float32, "causal_sdpa")
    assert (chosen.autocast, chosen.is_half) == (None, False)
    assert "float32" in chosen.why


@pytest.mark.usefixtures("gpu")
def test_gpu_computes_in_bfloat16_but_trains_its_base_in_float32() -> None:
    assert choose(TINY, "cuda").dtype == torch.bfloat16
    assert choose(TINY, "cuda", trains_base=True).dtype == torch.float32


def test_a_driver_without_a_gpu_refuses_nothing_that_a_workers_gpu_may_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_has_gpu", lambda: False)
    for spec in (TINY, ModelSpec(path="tiny", dtype="bfloat16")):
        assert choose(spec, "cuda").dtype == torch.bfloat16
    assert "this machine has none" in choose(TINY, "cuda").why


def test_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_gpu", lambda: True)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)
    assert choose(TINY, "cuda:1").dtype == torch.float32
    assert choose(ModelSpec(path="tiny", quantization="nf4"), "cuda").dtype == torch.float16
    with pytest.raises(ConfigError, match="does not compute in bfloat16; float16 or float32"):
        choose(ModelSpec(path="tiny", dtype="bfloat16"), "cuda")


@pytest.mark.usefixtures("gpu")
def test_flash_attention_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = precision.importlib.util.find_spec
    monkeypatch.setattr(
        precision.importlib.util,
        "find_spec",
        lambda name: object() if name == "flash_attn" else find(name),
    )
    assert choose(TINY, "cuda").attn_implementation == "flash_attention_2"
    assert choose(TINY, "cuda", trains_base=True).attn_implementation == "causal_sdpa"  # float32
    assert choose(TINY, "cpu").attn_implementation == "causal_sdpa"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("values", "device", "message"),
    [
        ({"dtype": "float16"}, "cpu", "loses small gradients; float32 or bfloat16"),
        ({"attn_implementation": "flash_attention_2"}, "cpu", "needs a CUDA device.*sdpa or eager"),
        ({"attn_implementation": "flash_attention_2"}, "cuda", "flash_attn, which is not inst"),
        ({"attn_implementation": "spda"}, "cpu", r"must be one of auto.* Did you mean sdpa\?"),
    ],
)
def test_what_a_device_cannot_do_is_refused(
    values: dict[str, Any], device: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(ModelSpec(path="tiny", **values), device)


def test_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        choose(ModelSpec(path="tiny", quantization="int8"), "cpu")


@pytest.mark.parametrize(
    ("device", "index"), [("cuda", "cuda:1"), ("cuda:2", "cuda:2"), ("cpu", None)]
)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.usefixtures("gpu")
def test_weights_are_loaded_straight_onto_the_device_of_this_rank(
    monkeypatch: pytest.MonkeyPatch, device: str, index: str | None, quantization: Any
) -> None:
    """transformers reads them in threads of its own, for which "cuda" is the first GPU."""
    given: dict[str, Any] = {}

    class Asked(RuntimeError):
        pass

    def from_pretrained(*_: Any, **options: Any) -> None:
        given.update(options)
        raise Asked

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(Asked):
        load_base(ModelSpec(path="tiny", quantization=quantization), device)
    goes_by_main_memory = device == "cpu" and quantization == "none"
    assert given.get("device_map") == (None if goes_by_main_memory else {"": index or "cpu"})


def test_explicit_choices_are_respected() -> None:
    spec = ModelSpec(path="tiny", dtype="bfloat16", attn_implementation="eager")
    model = load_base(spec, "cpu")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_adapt_trains_the_adapter_or_everything(method: str) -> None:
    model = adapt(load_base(TINY, "cpu"), {"method": method})
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if method == "full":
        assert len(trainable) == len(list(model.parameters()))
    else:
        assert len(trainable) == 3 * 7 * 2  # layers, linears of a layer, A and B
        assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize(("quantization", "flag"), [("nf4", "4bit"), ("int8", "8bit")])
def test_quantized_base_takes_a_training_step(quantization: Any, flag: str) -> None:
    model = load_base(ModelSpec(path="tiny", quantization=quantization), "cpu")
    assert getattr(model, f"is_loaded_in_{flag}")
    torch.manual_seed(0)
    model = adapt(model, {"method": "qlora", "r": 4, "target_modules": ["q_proj", "v_proj"]})
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.bfloat16}
    rows = torch.arange(24).view(2, 12)  # [rows, tokens]
    before = model(input_ids=rows, labels=rows).loss
    before.backward()
    with torch.no_grad():
        for weight in trained.values():
            weight -= 0.5 * weight.grad
    assert model(input_ids=rows, labels=rows).loss < before
    frozen = [weight.grad for weight in model.parameters() if not weight.requires_grad]
    assert frozen == [None] * len(frozen)


def test_nf4_is_near_the_full_weights() -> None:
    rows = torch.arange(24).view(2, 12)
    spec = ModelSpec(path="tiny", quantization="nf4")
    with torch.no_grad():
        full = load_base(TINY, "cpu")(input_ids=rows, labels=rows).loss.item()
        quantized = load_base(spec, "cpu")(input_ids=rows, labels=rows).loss.item()
    assert full != quantized
    assert quantized == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize(
    ("peft", "key", "words"),
    [
        ({"method": "lorra"}, "peft.method", "Did you mean lora?"),
        ({"rank": 8}, "peft.rank", "not a field of peft.LoraConfig"),
        ({"lora_alfa": 8}, "peft.lora_alfa", "Did you mean lora_alpha?"),
        ({"r": 0}, "peft.r", "1 or more"),
        ({"r": 2.5}, "peft.r", "1 or more"),
        ({"r": True}, "peft.r", "1 or more"),
        ({"lora_alpha": 0}, "peft.lora_alpha", "above 0"),
        ({"lora_alpha": float("nan")}, "peft.lora_alpha", "above 0"),
        ({"lora_dropout": 1.0}, "peft.lora_dropout", "below 1"),
        ({"lora_dropout": "none"}, "peft.lora_dropout", "below 1"),
        ({"bias": "some"}, "peft.bias", "none, all, lora_only"),
        ({"target_modules": ["q_proj", "lm_head"]}, "peft.target_modules", "never be trained"),
        ({"target_modules": ".*head"}, "peft.target_modules", "never be trained"),
        ({"target_modules": "(q_proj"}, "peft.target_modules", "not a regular expression"),
        ({"target_modules": []}, "peft.target_modules", "all-linear"),
        ({"layers_pattern": "layers"}, "peft", "when `target_modules` is a str"),
    ],
)
def test_wrong_peft_values_are_named(peft: dict[str, Any], key: str, words: str) -> None:
    problems = peft_problems({"method": "lora", **peft} if "method" not in peft else peft)
    assert keys(problems) == [key]
    assert words in str(problems[0])


def test_all_peft_problems_are_shown_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        lora_config({"method": "lora", "r": -1, "lora_dropout": 2, "lora_alfa": 3})
    assert keys(list(caught.value.problems)) == ["peft.lora_alfa", "peft.r", "peft.lora_dropout"]


def test_method_and_quantization_must_fit() -> None:
    qlora = peft_problems({"method": "qlora"}, TINY)
    full = peft_problems({"method": "full"}, ModelSpec(path="tiny", quantization="nf4"))
    assert keys([*qlora, *full]) == ["model.quantization"] * 2
    assert peft_problems({"method": "lora"}, TINY) == []


def test_lora_config_takes_the_mapping_and_our_defaults() -> None:
    config = lora_config({"method": "qlora", "r": 4, "use_rslora": True})
    assert config is not None
    assert (config.r, config.use_rslora, config.target_modules) == (4, True, "all-linear")
    assert config.task_type == "CAUSAL_LM"
    assert lora_config({"method": "full", "r": 4}) is None


def test_target_modules_are_checked_against_the_model() -> None:
    problems = target_problems(TINY, {"method": "lora", "target_modules": ["q_porj", "v_proj"]})
    assert keys(problems) == ["peft.target_modules"]
    assert problems[0].nearest == "q_proj"
    assert target_problems(TINY, {"method": "lora", "target_modules": "all-linear"}) == []
    with pytest.raises(SweepError, match=r"peft: Target modules .*q_porj"):
        adapt(load_base(TINY, "cpu"), {"method": "lora", "target_modules": ["q_porj"]})


@pytest.mark.parametrize("path", sorted(CONF.glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_field_is_in_the_yaml_so_that_overrides_need_no_plus(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert values.keys() == {field.name for field in dataclasses.fields(ModelSpec)}


def test_base_fingerprint_follows_the_weights_and_not_the_place(copy: Path) -> None:
    assert fingerprint_base(ModelSpec(path=str(copy))) == fingerprint_base(TINY)
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1  # the size stays
    weights.write_bytes(raw)
    assert fingerprint_base(ModelSpec(path=str(copy))) != fingerprint_base(TINY)
