"""Where generation stops: the end of a turn, and the tokenizer's eos token."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import SweepError
from sweeps.space.grammar import parse, plain
from trainers.model.source import resolve_path
from trainers.model.stopping import end_of_turn, write_generation_config
from trainers.model.tokenizer import load_tokenizer, set_eos

TINY = ModelSpec(path="tiny")
TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"


def tiny_copy(folder: Path, **settings: object) -> ModelSpec:
    """The embedded model with other tokenizer settings; None takes one out."""
    shutil.copytree(resolve_path("tiny"), folder)
    file = folder / "tokenizer_config.json"
    kept = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))
    return ModelSpec(path=str(folder))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, "<|im_end|>"),
        (TURN + "<|eos|>{% endfor %}", "<|eos|>"),
        (TURN + "{{ eos_token }}\n{% endfor %}", "<|eos|>"),
        (TURN + "\n{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(
    template: str | None, end: str | None
) -> None:
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = template or tokenizer.chat_template
    assert end_of_turn(tokenizer) == end


def test_the_generation_config_is_the_bases_with_the_ends_before_its_own(tmp_path: Path) -> None:
    base = tiny_copy(tmp_path / "base")
    own = Path(base.path, "generation_config.json")
    own.write_text('{"eos_token_id": 2, "top_k": 7}')
    for stops, ids in (((4, 2), [4, 2]), ((), [2]), ((4,), [4, 2])):
        write_generation_config(tmp_path, base, stops)
        written = GenerationConfig.from_pretrained(str(tmp_path))
        assert (written.eos_token_id, written.top_k) == (ids, 7)
    own.unlink()
    write_generation_config(tmp_path, base, (4,))
    assert GenerationConfig.from_pretrained(str(tmp_path)).eos_token_id == [4, 2]


def test_the_advice_for_a_tokenizer_without_eos_can_be_pasted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_copy(tmp_path / "noeos", eos_token=None))
    with pytest.raises(SweepError) as caught:
        set_eos(tokenizer, None)
    (word,) = shlex.split(str(caught.value).rpartition("): ")[2])
    key, _, text = word.partition("=")
    assert key == "trainer.eos_token"
    set_eos(tokenizer, plain(parse(text)))
    assert tokenizer.eos_token == "<|eos|>"
