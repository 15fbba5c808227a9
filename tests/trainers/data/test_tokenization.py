"""What is learnt of a row: exactly what the user meant, each row on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.core.errors import ConfigError, SweepError
from trainers.data.preparation import DataReport, tokenized
from trainers.data.rows import read
from trainers.model.source import resolve_path
from trainers.model.tokenizer import IGNORED, load_tokenizer

ASSISTANT_ONLY = {"assistant_only_loss": True}
TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if 'tool_calls' in m %}{{ m.tool_calls | tojson }}{% endif %}{{ m.content or '' }}"
    "{% endfor %}"
)


def chat(*contents: str, **keys: Any) -> dict[str, Any]:
    """A row of turns, user and assistant by turns; `keys` go into the first answer."""
    roles = ("user", "assistant")
    turns: list[dict[str, Any]] = [
        {"role": roles[i % 2], "content": content} for i, content in enumerate(contents)
    ]
    turns[1].update(keys)
    return {"messages": turns}


def prepared(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    model: str = "tiny",
    template: str | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> tuple[list[tuple[str, str]], DataReport]:
    """(text, learnt text) of each row, and the report."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = None
    if template is not None:
        written = str(folder / "own.jinja")
        Path(written).write_text(template)
    spec = TrainSpec(
        model=ModelSpec(path=model, chat_template=written),
        data=DataSpec(source="file", path=str(path), eval_path=str(path), max_length=512, **data),
        peft={"method": "lora"},
        trainer=trainer or {},
        seed=0,
        budget=BudgetSpec(examples=10),
        evaluations=1,
    )
    parts, report = tokenized(spec, read(spec.data))
    tokenizer = load_tokenizer(spec.model)
    shown = []
    for row in parts["train"]:
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        learnt = [token for token, label in pairs if label != IGNORED]
        shown.append((tokenizer.decode(row["input_ids"]), tokenizer.decode(learnt)))
    return shown, report


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    turn = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    return {"messages": [{"role": "user", "content": "?"}, turn]}


def test_tool_calls_are_learnt_verbatim_whatever_other_rows_have(tmp_path: Path) -> None:
    calls = [
        call("weather", city="Paris"),
        call("clock", zone="UTC", h24=True, n=1),
        call("clock", n="one", nested={"a": [1, None, "x"]}),
        chat("hi", "hello"),
    ]
    shown, _ = prepared(tmp_path, calls, template=TOOLS_TEMPLATE)
    for row, (text, _learnt) in zip(calls[:3], shown, strict=False):
        written = text.removeprefix("<user>?<assistant>").removesuffix("<|eos|>")
        assert json.loads(written) == row["messages"][1]["tool_calls"]
    assert shown[3][0].startswith("<user>hi<assistant>hello")


def test_a_template_that_knows_no_calls_is_named(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"rows\.jsonl:1: cannot be .*may know no tool calls"):
        prepared(tmp_path, [call("weather", city="Paris")])


def test_each_row_has_its_own_tools(tmp_path: Path) -> None:
    first = {**chat("a", "b"), "tools": [{"name": "clock", "parameters": {"zone": {"type": "s"}}}]}
    second = {**chat("a", "b"), "tools": [{"name": "weather", "strict": True}]}
    shown, _ = prepared(tmp_path, [first, second, chat("a", "b")], template=TOOLS_TEMPLATE)
    for row, (text, _learnt) in zip((first, second), shown, strict=False):
        assert json.loads(text.partition("<user>")[0]) == row["tools"]
    assert shown[2][0].startswith("<user>a")


def test_the_end_of_a_prompt_is_never_learnt(tmp_path: Path) -> None:
    pairs = [("Name a colour.", "Blue"), ("a", "b"), ("2 + 2 =", "4"), ("Colour: ", "blue")]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    shown, report = prepared(tmp_path, rows)
    assert shown == [(f"{p}{c}<|eos|>", f"{c}<|eos|>") for p, c in pairs]
    assert any("rows: the prompt's last token would grow together" in x for x in report.notes)
    line_ends = [{"prompt": f"{p}\n", "completion": c} for p, c in pairs]
    assert not prepared(tmp_path, line_ends)[1].notes


@pytest.mark.parametrize(
    ("template", "learnt"),
    [
        (None, "\nHo\n<|im_end|>"),
        # Without a token of its own between the turns, their line breaks grow together.
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A:\\n' }}"
            "{% generation %}{{ m.content }}{% endgeneration %}{{ '\\n\\n' }}"
            "{% else %}{{ 'U:\\n' + m.content + '\\n\\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'A:\\n' }}{% endif %}",
            "\nHo\n",
        ),
    ],
    ids=["own", "plain"],
)
def test_a_turn_is_learnt_from_its_first_letter_to_its_last(
    tmp_path: Path, template: str | None, learnt: str
) -> None:
    row = chat("Hi", "\nHo\n", "Hi", "\nHo\n", weight=0)
    shown, report = prepared(tmp_path, [row], template=template, trainer=ASSISTANT_ONLY)
    assert [each for _, each in shown] == [learnt]
    assert any("2 rows: a turn's first or last token" in note for note in report.notes)
    turns = chat("Hi", "Ho", "Hi", "\nHo\n")["messages"]
    pair = {"prompt": turns[:3], "completion": turns[3:]}
    ((text, after),), _ = prepared(tmp_path, [pair], template=template)
    assert text.endswith(after)
    assert after.startswith(learnt)


def test_a_tokenizer_that_adds_its_own_eos_gives_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "eosadd"
    shutil.copytree(resolve_path("tiny"), folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 1), ("<|eos|>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    rows = [{"prompt": "Say it:\n", "completion": "yes"}]
    shown, report = prepared(tmp_path, rows, model=str(folder))
    assert shown == [("<|bos|>Say it:\nyes<|eos|>", "yes<|eos|>")]
    assert any("eos token; it is there once" in note for note in report.notes)
    (whole, _), *_ = prepared(tmp_path, [{"text": "yes"}], model=str(folder))[0]
    assert whole == "<|bos|>yes<|eos|>"


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}])
@pytest.mark.parametrize("trainer", [ASSISTANT_ONLY, {}], ids=["assistant", "all"])
def test_turns_that_are_marked_are_not_learnt(
    tmp_path: Path, key: dict[str, Any], trainer: dict[str, Any]
) -> None:
    row = chat("q", "bad", "q2", "good", **key)
    row["messages"][3]["weight"] = 1
    ((text, learnt),), _ = prepared(tmp_path, [row], trainer=trainer)
    assert "bad<|im_end|>" in text
    assert "weight" not in text
    assert "bad" not in learnt
    assert "good<|im_end|>" in learnt
    if trainer:
        assert learnt == "good<|im_end|>"


def test_a_row_without_a_turn_to_learn_is_bad(tmp_path: Path) -> None:
    rows = [chat("q", "a"), chat("q", "bad", weight=0)]
    with pytest.raises(SweepError, match=r"rows\.jsonl:2: no turn of it is to be learnt"):
        prepared(tmp_path, rows, trainer=ASSISTANT_ONLY)


def test_one_conversation_without_an_answer_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "only a question"}]}
    rows = [chat(f"q{i}", "a") for i in range(3)] + [question]
    with pytest.raises(SweepError, match=r"rows\.jsonl:4: no assistant turn"):
        prepared(tmp_path, rows, trainer=ASSISTANT_ONLY)
    shown, report = prepared(tmp_path, rows, trainer=ASSISTANT_ONLY, on_bad_row="skip")
    assert len(shown) == 3
    assert report.skipped_rows == 2  # of the training and of the evaluation rows


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    twice = {"messages": [{"role": "user", "content": "q"}] * 2}
    with pytest.raises(SweepError, match=r"rows\.jsonl:2: cannot be tokenized: .*must alternate"):
        prepared(tmp_path, [chat("q", "a"), twice], template=template)
    rows = [chat("q", "a"), twice]
    shown, _ = prepared(tmp_path, rows, template=template, on_bad_row="skip")
    assert len(shown) == 1


def test_the_end_of_a_turn_is_learnt_and_is_where_generation_stops(tmp_path: Path) -> None:
    ((_, learnt), *_), report = prepared(tmp_path, [chat("q", "a")], trainer=ASSISTANT_ONLY)
    assert learnt == "a<|im_end|>"
    assert report.stops == (4, 2)
    (note,) = report.notes
    assert note.startswith("a turn ends with <|im_end|>, and the tokenizer's eos token is <|eos|>")
    named, report = prepared(tmp_path, [chat("q", "a")], trainer={"eos_token": "<|im_end|>"})
    assert (report.stops, report.notes) == ((4,), ())
    pair = {"prompt": "q\n", "completion": "a"}
    named, report = prepared(tmp_path, [pair], trainer={"eos_token": "<|im_end|>"})
    assert (named, report.stops) == ([("q\na<|im_end|>", "a<|im_end|>")], (4,))
    open_end = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    _, report = prepared(tmp_path, [chat("q", "a")], template=open_end)
    assert report.stops == (2,)
    assert report.notes[0].startswith("the chat template ends the assistant's turn with no token")


def marked(end: str) -> str:
    """A template that marks answers as learnt, and writes `end` after each without the mark."""
    return (
        "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        + end
        + "{% endfor %}"
    )


@pytest.mark.parametrize(("end", "also"), [("<|im_end|>", "<|im_end|>"), ("\n", "")])
def test_the_end_of_a_turn_is_learnt_though_the_template_does_not_mark_it(
    tmp_path: Path, end: str, also: str
) -> None:
    row = chat("q", "a", "q2", "b")
    row["messages"][1]["weight"] = 0
    ((_, learnt), *_), _ = prepared(tmp_path, [row], template=marked(end), trainer=ASSISTANT_ONLY)
    assert learnt == f"b{also}"


def test_what_the_template_does_not_write_is_said(tmp_path: Path) -> None:
    row = call("clock", zone="UTC")
    row["messages"][1] |= {"content": "at once", "reasoning_content": "hm", "name": "C"}
    row["messages"].append({"role": "tool", "content": "noon", "tool_call_id": "1"})
    row["messages"].append({"role": "assistant", "content": "It is noon."})
    row |= {"tools": [{"name": "clock"}], "system": "Be brief."}
    _, report = prepared(tmp_path, [chat("q", "a"), row])  # its template writes all contents
    said = "\n".join(report.notes)
    for part in ("tool_calls, so the turns that call", "reasoning_content, so it is not learnt"):
        assert f"2 rows: the chat template does not write {part}" in said
    assert "does not write name, so" in said
    assert "does not write tools, so the model does not see which there are" in said
    assert "of the role" not in said
    only_users = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m }}{% endfor %}"
    _, report = prepared(tmp_path, [chat("q", "a"), row], template=only_users)
    (system, tool) = [note for note in report.notes if "turns of the role" in note]
    assert "turns of the role system" in system
    assert "turns of the role tool" in tool
    everything = "{{ tools }}{% for m in messages %}{{ m }}<|eos|>{% endfor %}"
    assert not prepared(tmp_path, [chat("q", "a"), row], template=everything)[1].notes


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learnt_as_the_template_writes_it(tmp_path: Path, key: str) -> None:
    template = (
        "{% for m in messages %}{% if m." + key + " %}<think>{{ m." + key + " }}</think>{% endif %}"
        "{{ m.content }}<|eos|>{% endfor %}"
    )
    rows = [chat("q", "a", **{key: "because"}), chat("q", "b")]
    shown, report = prepared(tmp_path, rows, template=template)
    assert [text for text, _ in shown] == [
        "q<|eos|><think>because</think>a<|eos|>",
        "q<|eos|>b<|eos|>",
    ]
    assert report.notes == ()


def test_arguments_that_are_json_text_stay_text_and_are_said(tmp_path: Path) -> None:
    text = '{"zone": "UTC"}'
    row = call("clock")
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = text
    ((shown, _), *_), report = prepared(tmp_path, [row], template=TOOLS_TEMPLATE)
    assert json.dumps(text) in shown
    assert any("arguments of tool calls are JSON text" in note for note in report.notes)
    plainly = (
        "{% for m in messages %}{{ m.content or m.tool_calls[0].function.arguments }}{% endfor %}"
    )
    ((shown, _), *_), report = prepared(tmp_path, [row], template=plainly)
    assert shown == f"?{text}"
    assert not any("JSON text" in note for note in report.notes)


@pytest.mark.parametrize("system", ["Be brief.", "", None])
def test_a_system_column_is_the_first_turn(tmp_path: Path, system: str | None) -> None:
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    head = [{"role": "system", "content": system}] if system else []
    expected = prepared(tmp_path, [{"messages": [*head, *chat("q", "a")["messages"]]}])[0]
    for row in (
        {"conversations": sharegpt, "system": system},
        {**chat("q", "a"), "system": system},
    ):
        assert prepared(tmp_path, [row])[0] == expected


def test_two_different_system_prompts_and_odd_tools_are_bad_rows(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be brief."}, *chat("q", "a")["messages"]]
    same = {"messages": own, "system": "Be brief."}
    others = [{"messages": own, "system": "Be long."}, {**same, "system": 3}]
    others += [{**same, "tools": tools} for tools in ({"name": "a"}, "{", ["a"])]
    with pytest.raises(SweepError, match="10 of 12 rows cannot be used") as caught:
        prepared(tmp_path, [same, *others])
    reasons = [line.split(": ", 1)[1] for line in str(caught.value).splitlines()[1:6]]
    assert reasons[0] == "system and the messages have different system prompts; keep one"
    assert reasons[1] == "system is the int 3, not text"
    assert reasons[2:] == [
        "tools is an object, not a list of tools",
        "tools is text that is not JSON",
        "tools holds text; a tool is an object",
    ]
    assert prepared(tmp_path, [same, *others], on_bad_row="skip")[1].skipped_rows == 10


def test_a_system_column_of_text_comes_before_the_prompt_and_is_no_message(tmp_path: Path) -> None:
    pair = {"prompt": "q\n", "completion": "a", "system": "Be brief."}
    _, report = prepared(tmp_path, [pair])
    assert "read as prompt and completion with a system prompt" in report.notes[0]
    with pytest.raises(ConfigError, match=r"data\.columns\.system = system: is read with chats"):
        prepared(tmp_path, [pair], columns={"system": "system"})
