"""Commands to copy: a shell, Hydra's parser and our own reading give back the value."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.best.merge import export
from orchestrator.config.compose import compose_config
from sweeps.core.commands import UnwritableError, command_line, masked_word, override, written
from sweeps.core.errors import FolderHeldError, SweepError
from sweeps.space.grammar import parse, plain
from sweeps.storage.lock import Lock
from sweeps.storage.run_folder import RunFolder

KEY = "peft.made_up"
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats()
# Small alphabets, since what goes wrong is a matter of neighbours; and words that are no text.
TEXTS = (
    st.text()
    | st.text("\\\"'${}a ")
    | st.text("0123456789eE._+-")
    | st.sampled_from("2018 1e5 -1 .5 true null NULL nan inf 1_000 ü choice(1) a,b x=y".split())
).filter(lambda text: text != "???")  # in a config: a value that is yet to be given
LEAVES = NUMBERS | TEXTS | st.booleans() | st.none()
KEYS = st.text("aZ0_-/.*?@%|+$\\(){}[]:=, \t", min_size=1).filter(
    lambda key: not re.fullmatch(r"[0._+-]+", key)
) | st.integers(-9, 99)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def through_a_shell(word: str) -> str:
    # What looks like the password of a URL is masked, and so not given back.
    assume(masked_word(*word.split("=", 1)) == word)
    *command, read = shlex.split(command_line([word]))
    assert command == ["python", "-m", "orchestrator"]
    return read


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types: 1, 1.0 and true are three values."""
    return repr(one) == repr(other)


def without_types(value: Any) -> Any:
    """Without Hydra's own types; `plain` makes keys text as well."""
    if isinstance(value, dict):
        return {key: without_types(item) for key, item in value.items()}
    return [without_types(item) for item in value] if isinstance(value, list) else plain(value)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(VALUES)
@example("\\")
@example('\\"')
@example("a\tb\nc")
@example({"007": {"1.2.3": None}})
def test_hydras_parser_reads_back_what_was_written(value: Any) -> None:
    read = parse(through_a_shell(f"key={written(value)}").partition("=")[2])
    assert same(without_types(read), value)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=8))
@example(
    ["${a}", "\\${a}", "$${", "2018", "1e5", "true", "null", "\\d+", "ü", "a,b", "choice(1,2)"]
)
@example([{"x": {"a.b": ["???x", None, "${"]}}, {1: 2}])
def test_a_config_has_the_value_that_was_written(values: list[Any]) -> None:
    words = [override(f"{KEY}_{number}", value) for number, value in enumerate(values)]
    config, base, _, _ = compose_config(["sweep=base", *map(through_a_shell, words)])
    trained = OmegaConf.to_container(OmegaConf.create(base), resolve=True)
    assert isinstance(trained, dict)
    for number, value in enumerate(values):
        name = f"made_up_{number}"
        assert same(config["peft"][name], value)
        assert same(trained["peft"][name], value)


@pytest.mark.parametrize("key", ["", "2018", "1e5", "-.5", "true", "NULL", "nan", "^a", "ü", "a'b"])
def test_a_key_that_hydra_has_no_form_for_is_named(key: str) -> None:
    with pytest.raises(UnwritableError, match=re.escape(f"{key!r} cannot be a key")):
        written({"a": [{key: 1}]})
    with suppress(HydraException):
        assert parse(f"{{{key}: 1}}") != {key: 1}


def test_a_password_in_a_value_is_masked_and_nothing_else_is() -> None:
    words = [override("data.path", "s3://me:pass@host/a b"), override("data.name", "s3://host/a b")]
    assert "pass" not in command_line(words)
    assert shlex.split(command_line(words))[-1] == words[1]


def test_what_needs_no_quotes_has_none() -> None:
    assert command_line([override("data.path", "data/train.jsonl")]) == (
        "python -m orchestrator data.path=data/train.jsonl"
    )
    assert command_line([override("data.columns", {"prompt": "question"})]) == (
        "python -m orchestrator 'data.columns={prompt: question}'"
    )
    assert override("model.revision", "2018") == 'model.revision="2018"'
    assert override("trainer.learning_rate", 1e-5) == "trainer.learning_rate=1e-05"


def test_the_folder_in_a_hint_can_be_pasted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "my sweep's")
    lock = Lock(folder.lock)
    with pytest.raises(FolderHeldError) as held:
        Lock(folder.lock)
    lock.release()
    folder.ledger.write_text("")
    with pytest.raises(SweepError) as unproven:
        export(folder.root, merge=False, to=None)
    for error in (held, unproven):
        found = re.search(r"python -m orchestrator (status .*?sweep'\"'\"'s')", str(error.value))
        assert found is not None
        assert shlex.split(found[1]) == ["status", str(folder.root)]
