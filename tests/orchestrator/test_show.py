"""The verb `show`, and the rows in a plan: what the model will see, and what of it is learnt."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.terminal.row_view import legend, row_view
from trainers.preview import Preview

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]


def viewed(row: Preview, most: int | None = None, *, colour: bool = False) -> str:
    kind = "truecolor" if colour else None
    console = Console(file=io.StringIO(), force_terminal=colour, color_system=kind, width=500)
    console.print(row_view(row, console, most), soft_wrap=True)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "green" in legend(console) or not colour
    return str(written)


def preview(*parts: tuple[str, bool]) -> Preview:
    return Preview(parts=parts, tokens=9, learnt=4, where="a.jsonl:3")


def test_what_is_learnt_stands_in_brackets_or_in_colour() -> None:
    row = preview(("Say [[:\n", False), ("yes\x1b[2J", True))
    assert viewed(row) == (
        "a.jsonl:3: 9 tokens, 4 of them learnt\n  | Say [[:\n  | [[yes\\x1b[2J]]\n"
    )
    coloured = viewed(row, colour=True)
    assert "\x1b[1;32myes" in coloured
    assert "\x1b[2J" not in coloured  # of the data: it would clear the screen


@pytest.mark.parametrize(
    ("most", "body"),
    [
        (11, "01234[[56789]]"),
        (10, "01234[[56789]]"),
        (7, "0123 ... 3 letters ... [[789]]"),
        (1, "0 ... 9 letters ... "),
        (8, "0123 ... 2 letters ... [[6789]]"),
    ],
)
def test_of_a_long_row_the_middle_is_left_out(most: int, body: str) -> None:
    shown = viewed(preview(("01234", False), ("56789", True)), most)
    assert shown.splitlines()[1] == f"  | {body}"


@pytest.fixture
def chats(tmp_path: Path) -> str:
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": TURNS}, {"messages": [*TURNS, *TURNS]}, {"messages": TURNS}]
    rows += [{"messages": [{"role": "user", "content": "?" * 40}, TURNS[1]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], path: str, *words: str) -> list[str]:
    """What `show` prints for rows of chats of which the answers are learnt."""
    files = (f"data.path={path}", f"data.eval_path={path}", "data.max_length=40")
    given = ("data=file", *files, "trainer.assistant_only_loss=true", "tracking=off")
    assert main(["show", *given, *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_rows_are_shown_with_their_place_and_counts(
    chats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(capsys, chats, "--rows", "2")
    assert any(line.startswith(f"data: {chats}; messages (chat)") for line in lines)
    assert "  turns: user 10, assistant 10" in lines
    start = next(index for index, line in enumerate(lines) if line.startswith("the first 2 rows"))
    assert lines[start].endswith("as the model sees them; what it learns is in [[ ]]")
    first, *rest = lines[start + 2 :]
    assert first.startswith(f"{chats}:1: ")
    assert rest[:4] == [
        "  | <|im_start|>user",
        "  | q<|im_end|>",
        "  | <|im_start|>assistant",
        "  | [[yes<|im_end|>]]",
    ]
    assert len([line for line in rest if "tokens" in line and "learnt" in line]) == 1


def test_a_default_longer_than_the_model_reads_is_lowered_as_in_a_sweep(
    chats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["show", "data=file", f"data.path={chats}", f"data.eval_path={chats}", "tracking=off"]
    assert main(words) == 0
    assert "data.max_length=512, all that tiny reads" in capsys.readouterr().out
    assert main([*words, "data.max_length=600"]) == 1
    assert "tiny reads at most 512 tokens" in capsys.readouterr().err


def test_the_longest_rows_and_their_cut_are_shown(
    chats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(capsys, chats, "--longest", "--rows=1", "--cut=30")
    (head,) = [line for line in lines if "of them learnt" in line]
    assert head.startswith((f"{chats}:2: ", f"{chats}:4: "))
    assert any("letters ..." in line for line in lines)


def test_its_options_are_explained_and_checked(
    chats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, code in (("--help", 0), ("--rows=0", 1), ("--rows=x", 1)):
        with pytest.raises(SystemExit) as left:
            main(["show", word])
        assert left.value.code == code
    assert "--longest" in capsys.readouterr().out
    assert main(["show", "--lngest"]) == 1
    assert "--lngest: is no option" in capsys.readouterr().err
    assert main(["show", "data=file", f"data.path={chats}.x"]) == 1
    assert "no such file" in capsys.readouterr().err
