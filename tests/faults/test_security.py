"""A pickle, a `../` name, foreign code and a canary secret, by every way in. None gets through."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.real_sweeps import under_way
from support.witnessed import GRID, Witnessed, has_losses_of

import trainers
from orchestrator.cli import main

pytestmark = pytest.mark.faults

Make = Callable[..., Witnessed]
Note = Callable[[str, object], None]
CANARY = "canary7f3e9b2a6c5d4e8f1a0b9c8d7e6f5a4b3c2d1e0f"
TINY = Path(trainers.__file__).parent / "tiny_llama"


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._flag}",)


def files(*roots: Path) -> list[Path]:
    return [path for root in roots for path in root.rglob("*") if path.is_file()]


def holding(secret: str, *roots: Path) -> list[Path]:
    """The files that hold it, plain or in base64, or in their names."""
    import base64

    words = [secret.encode(), base64.b64encode(f"api:{secret}".encode())]
    return [
        path
        for path in files(*roots)
        if secret in str(path) or any(word in path.read_bytes() for word in words)
    ]


def test_a_secret_is_in_no_file_and_on_no_line(engine: str, make: Make, note: Note) -> None:
    """In the environment of a whole sweep, and in an override that is refused."""
    command = make(engine, GRID, "tracking=offline")
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_SERVICE_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        command.environment[name] = CANARY
    for name in ("HTTPS_PROXY", "http_proxy", "WANDB_BASE_URL", "HF_ENDPOINT"):
        command.environment[name] = f"http://me:{CANARY}@127.0.0.1:9"
    assert command.run(f"trainer.hub_token={CANARY[::-1]}") == 1
    assert "hub_token = ***" in command.output
    before = set(Path("/tmp/ray").glob("session_2*"))
    command.start()
    command.wait_until(under_way)
    rays = set(Path("/tmp/ray").glob("session_2*")) - before  # removed at the end
    assert rays
    assert holding(CANARY, *rays) == []
    assert command.wait() == 0, command.output
    assert holding(CANARY, command.root) == []
    assert holding(CANARY[::-1], command.root) == []
    note("a secret in the environment and in an override", "in no file and on no line")


def test_a_secret_in_a_refusal_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], note: Note
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    for words in (
        [f"model.path=https://me:{CANARY}@host/model"],
        ["data=file", f"data.path=https://host/rows.jsonl?token={CANARY}"],
        [f"trainer.hub_tokn={CANARY}"],
        [f"tracking.projct={CANARY}"],
        [f"trainer.learning_rate={CANARY}"],
        [CANARY],
    ):
        assert main([*words, "cluster.cpus=1"]) == 1
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err, words
    assert files(tmp_path) == []
    note("a secret in a refused command", "masked in every message")


@pytest.mark.parametrize(
    "words",
    [
        ["name=../evil"],
        ["run_dir=../evil"],
        ["run_dir=a/../../evil"],
        ["name=a/b"],
        ["name=" + "x" * 300],
        ["run_dir=" + "x" * 300],
        ["name=a\nb"],
        ["run_dir=a\x07b"],
        ["sweep=../../../etc/passwd"],
        ["model=../../evil"],
        ["data=file", "data.path=../nothing/*.jsonl"],
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    note: Note,
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert files(tmp_path) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]
    note(f"{words[-1][:30]!r}", "refused, nothing written")


def test_planted_pickles_are_never_opened(
    engine: str, make: Make, whole: Make, tmp_path: Path, note: Note
) -> None:
    """In a run folder that is gone on with: beside and in place of every file of every kind."""
    flag = tmp_path / "opened"
    evil = pickle.dumps(Payload(flag))
    command = make(engine, GRID)
    command.start()
    command.wait_until(under_way)
    workers = command.worker_pids()
    command.kill()
    command.wait_for_end_of(workers)  # they finish what they write
    planted = 0
    folders = [path for path in command.run_dir.rglob("*") if path.is_dir()]
    for folder in [command.run_dir, *folders]:
        for name in ("training_args.bin", "pytorch_model.bin", "state.pkl", "tuner.pkl"):
            (folder / name).write_bytes(evil)
            planted += 1
    for path in command.run_dir.rglob("*.pt*"):
        path.write_bytes(evil)
        planted += 1
    (command.run_dir / ".tune").mkdir(exist_ok=True)
    (command.run_dir / ".tune" / "tuner.pkl").write_bytes(evil)
    code = command.run()
    assert not flag.exists()
    assert code == 0, command.output
    assert has_losses_of(command, whole(engine, GRID))
    note(f"{planted} pickles planted in a run folder", "none opened; losses equal")


@pytest.mark.parametrize("asked", [False, True])
def test_a_models_own_code_runs_only_where_that_was_asked_for(
    asked: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    note: Note,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flag = tmp_path / "ran"
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(
        f"open({str(flag)!r}, 'w')\nclass EvilConfig: pass\nclass Evil: pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    words = [f"model.path={model}", "data.limit=100", *["model.trust_remote_code=true"] * asked]
    try:
        code = main(["plan", *words])
    except Exception:
        assert asked  # the planted code is no model
        code = 1
    assert code == 1
    if not asked:
        assert not flag.exists()
        assert "trust_remote_code" in capsys.readouterr().err
        note("a model folder with code of its own", "refused, trust_remote_code named")


def test_a_models_pickled_weights_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], note: Note
) -> None:
    flag = tmp_path / "opened"
    model = tmp_path / "model"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.safetensors"))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(flag)))
    monkeypatch.chdir(tmp_path)
    code = main(["plan", f"model.path={model}", "data.limit=100"])
    said = capsys.readouterr()
    assert not flag.exists()
    assert code == 1, said.out
    assert "safetensors" in said.err
    note("a model folder with pickled weights", "refused, not opened")


def test_a_ledger_that_names_another_folder_is_refused(
    engine: str, make: Make, note: Note, tmp_path: Path
) -> None:
    command = make(engine, GRID)
    command.start()
    command.wait_until(under_way)
    command.kill()
    ledger = command.run_dir / "ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    first = next(event["trial"] for event in events if event["event"] == "ask")
    text = ledger.read_text().replace(f'"{first}"', '"../../evil"')
    ledger.write_text(text)
    assert command.run() == 1
    assert "trial is no key" in command.output
    assert "Traceback" not in command.output
    assert not list(command.root.rglob("evil"))
    note("a ledger with ../ for a trial's key", "refused by its line")
