"""Paths on a command line: what is typed is what is meant, and absolute before it is used."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.compose import compose_config
from sweeps.core.commands import override
from sweeps.core.errors import ConfigError
from trainers.model.source import resolve_path

FILE = "data=file"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are typed, and a home beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def composed(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, base, _, _ = compose_config(words)
    return config, base


def test_every_path_is_absolute_before_anything_sees_it(here: Path) -> None:
    (here / "models" / "mine").mkdir(parents=True)
    words = ["model=hub", "model.path=models/mine", "model.chat_template=mine.jinja", FILE]
    words += ["data.path=train.jsonl", "data.eval_path=./shards/*.csv", "run_dir=runs/a"]
    config, base = composed(*words, "storage=copies")
    assert config["model"]["path"] == f"{here}/models/mine"
    assert config["model"]["chat_template"] == f"{here}/mine.jinja"
    assert config["data"]["path"] == f"{here}/train.jsonl"
    assert config["data"]["eval_path"] == f"{here}/shards/*.csv"
    assert (config["run_dir"], config["storage"]) == (f"{here}/runs/a", f"{here}/copies")
    assert base["model"] == config["model"]  # what each trial is told
    assert base["data"]["path"] == config["data"]["path"]


def test_a_link_keeps_its_name(here: Path) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    config, _ = composed("model=hub", "model.path=link")
    assert config["model"]["path"] == f"{here}/link"


@pytest.mark.parametrize(
    "path", ["tiny", "OWNER/NAME", "/data/models/mine/", "gpt2", "/a/../b", "Qwen/Qwen3-0.6B"]
)
def test_absolute_paths_and_hub_ids_stay_as_they_are(path: str, here: Path) -> None:
    """The keys of trials are made of them."""
    config, base = composed("model=hub", f"model.path={path}")
    assert config["model"]["path"] == base["model"]["path"] == path


def test_addresses_and_data_sets_of_the_hub_are_no_paths(here: Path) -> None:
    words = ["data=hub", "data.path=OWNER/NAME", "storage=s3://bucket/a", "run_dir=gs://bucket/b"]
    config, _ = composed(*words)
    assert config["data"]["path"] == "OWNER/NAME"
    assert (config["storage"], config["run_dir"]) == ("s3://bucket/a", "gs://bucket/b")


def test_a_folder_that_is_not_there_is_named_whole(here: Path) -> None:
    config, _ = composed("model=hub", "model.path=./my-model")
    assert config["model"]["path"] == f"{here}/my-model"


def test_the_embedded_model_is_not_a_folder_of_this_name(here: Path) -> None:
    (here / "tiny").mkdir()
    assert composed("model.path=tiny")[0]["model"]["path"] == "tiny"
    assert composed("model.path=./tiny")[0]["model"]["path"] == f"{here}/tiny"
    assert Path(resolve_path("tiny")).name == "tiny_llama"


@pytest.mark.parametrize("key", ["data.path", "data.eval_path", "run_dir", "model.path", "storage"])
@pytest.mark.parametrize("text", ["~/x/a", "'~/x/a'", '"~/x/a"'])
def test_a_home_is_found_quoted_or_not(key: str, text: str, here: Path) -> None:
    config, _ = composed("model=hub", "model.path=gpt2", FILE, "data.path=a", f"{key}={text}")
    section, _, name = key.rpartition(".")
    value = (config[section] if section else config)[name]
    assert value == f"{here.parent}/home/x/a"


NAMES = [
    "données/x.jsonl",
    "year=2024/x.parquet",
    "My Files (v2)/x.jsonl",
    "Tom's file.jsonl",
    "训练.jsonl",
    "a{1}.jsonl",
    "50%.jsonl",
    "2024",
    "1e5",
    "true",
    "a:b",
    "x [final].jsonl",
    "a & b;c.jsonl",
    "back\\slash",
    "#1.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["data.path", "run_dir", "model.chat_template"])
def test_a_name_is_taken_as_it_is_typed(key: str, name: str, here: Path) -> None:
    config, _ = composed(FILE, "data.path=other", f"{key}={name}")
    section, _, last = key.rpartition(".")
    assert (config[section] if section else config)[last] == f"{here}/{name}"


@pytest.mark.parametrize("name", ["a,b.jsonl", "[v2],x.jsonl", "[1]", "{a: b}"])
def test_a_name_that_reads_as_several_is_one_if_there_is_such_a_file(name: str, here: Path) -> None:
    (here / name).touch()
    assert composed(FILE, f"data.path={name}")[0]["data"]["path"] == f"{here}/{name}"


@pytest.mark.parametrize("key", ["data.path", "data.eval_path"])
@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("a.jsonl,b.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[a.jsonl,b.jsonl]", ["a.jsonl", "b.jsonl"]),
        ("[a.jsonl, 'b c.jsonl']", ["a.jsonl", "b c.jsonl"]),
        ("a.jsonl,b c.jsonl,", ["a.jsonl", "b c.jsonl"]),
        ("[données.jsonl,x=1.jsonl]", ["données.jsonl", "x=1.jsonl"]),
        ('"a,b.jsonl",c.jsonl', ["a,b.jsonl", "c.jsonl"]),
        ("shards/*.jsonl,more/", ["shards/*.jsonl", "more"]),
    ],
)
def test_several_data_files_are_a_list_as_people_type_it(
    key: str, typed: str, names: list[str], here: Path
) -> None:
    config, _ = composed(FILE, "data.path=other", f"{key}={typed}")
    assert config["data"][key.partition(".")[2]] == [f"{here}/{name}" for name in names]


def test_data_files_are_not_searched_and_what_it_says_can_be_pasted(here: Path) -> None:
    with pytest.raises(ConfigError, match="all trials have the same data") as error:
        composed(FILE, "data.path=choice(a.jsonl,b.jsonl)")
    (word,) = [each for each in shlex.split(str(error.value)) if each.startswith("data.path=")]
    expected = [f"{here}/a.jsonl", f"{here}/b.jsonl"]
    assert composed(FILE, word)[0]["data"]["path"] == expected


def test_a_choice_of_models_says_why_it_is_none(here: Path) -> None:
    with pytest.raises(ConfigError, match="run one sweep for each value"):
        composed("model=hub", "model.path=a/b,c/d")


def test_text_with_an_equal_sign_is_shown_as_it_is_written() -> None:
    with pytest.raises(ConfigError) as error:
        composed("trainer.optim=sgd", "trainer.optim_args=momentum=0.9")
    word = shlex.split(str(error.value).partition("As text it is written ")[2])[0]
    assert composed("trainer.optim=sgd", word)[0]["trainer"]["optim_args"] == "momentum=0.9"


@pytest.mark.parametrize("key", ["run_dir", "data.path", "model.path", "storage", "data", "sweep"])
def test_a_home_of_nobody_is_no_traceback(key: str, here: Path) -> None:
    with suppress(ConfigError):
        composed(FILE, f"{key}=~nobody.there/x.yaml")


def test_other_text_that_cannot_be_read_is_shown_as_it_is_written(here: Path) -> None:
    with pytest.raises(ConfigError) as error:
        composed("tracking.project=Büro (v2)")
    word = shlex.split(str(error.value).partition("As text it is written ")[2])[0]
    assert composed(word)[0]["tracking"]["project"] == "Büro (v2)"


def test_a_sweep_that_began_with_a_relative_data_file_goes_on(here: Path) -> None:
    run = here / "run"
    run.mkdir()
    (run / "ledger.jsonl").write_text("{}\n")
    (run / "sweep.yaml").write_text(json.dumps({"data": {"path": "train.jsonl"}}))
    words = [FILE, "data.path=train.jsonl", "data.eval_path=eval.jsonl", "run_dir=run"]
    config, _ = composed(*words)
    assert config["data"]["path"] == "train.jsonl"  # the keys of its trials are made of it
    assert config["data"]["eval_path"] == f"{here}/eval.jsonl"


_ANY = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30)


@pytest.mark.slow
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(_ANY)
def test_whatever_a_hint_tells_to_type_gives_the_name_back(here: Path, name: str) -> None:
    path = f"{here}/{name}"
    (word,) = shlex.split(shlex.quote(override("data.path", path)))
    assert composed(FILE, word)[0]["data"]["path"] == path
