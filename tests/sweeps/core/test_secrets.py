"""No secret in a file, a message or a tracked config."""

from __future__ import annotations

import pytest

from orchestrator.config.compose import compose_config, public
from sweeps.core.commands import command_line
from sweeps.core.errors import ConfigError, Problem, first_line
from sweeps.core.secrets import is_secret_key, masked, scrub


@pytest.mark.parametrize(
    "key",
    [
        "trainer.hub_token",
        "trainer.push_to_hub_token",
        "token",
        "HF_TOKEN",
        "wandb.api_key",
        "WANDB_API_KEY",
        "apiKey",
        "db.password",
        "passwd",
        "aws_secret_access_key",
        "client_secret",
        "credentials",
        "ssh.private_key",
    ],
)
def test_keys_that_hold_secrets(key: str) -> None:
    assert is_secret_key(key)
    assert masked(key, "abc") == "***"
    assert masked(key, ["abc"]) == "***"
    assert masked(key, None) is None


@pytest.mark.parametrize(
    "key",
    [
        "trainer.eos_token",
        "trainer.pad_token",
        "tokens",
        "max_new_tokens",
        "tokenizer",
        "key",
        "keep",
        "trainer.optim",
        "tokens_per_second",
    ],
)
def test_keys_that_hold_none(key: str) -> None:
    assert not is_secret_key(key)
    assert masked(key, "<eos>") == "<eos>"


def test_secrets_are_masked_at_any_depth_and_the_rest_stays() -> None:
    config = {
        "trainer": {"hub_token": "hf_abc", "optim": "sgd", "extra": [{"api_key": "k", "n": 1}]},
        "credentials": {"user": "me", "pin": 1234},
        "data": {"path": "https://me:pw@host/x.json?token=abc&split=train"},
        "none": {"token": None},
    }
    assert masked("", config) == {
        "trainer": {"hub_token": "***", "optim": "sgd", "extra": [{"api_key": "***", "n": 1}]},
        "credentials": "***",
        "data": {"path": "https://***@host/x.json?token=***&split=train"},
        "none": {"token": None},
    }
    assert config["trainer"]["hub_token"] == "hf_abc"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git clone https://me:p@ss@host/x", "git clone https://***@host/x"),
        ("http://token@host:8080/a@b", "http://***@host:8080/a@b"),
        ("s3://b/x?X-Amz-Signature=abc&v=1", "s3://b/x?X-Amz-Signature=***&v=1"),
        ("login(api_key='abc', n=1)", "login(api_key='***', n=1)"),
        ('{"password": "abc", "n": 1}', '{"password": "***", "n": 1}'),
        ("trainer.hub_token=hf_abc trainer.optim=sgd", "trainer.hub_token=*** trainer.optim=sgd"),
        ("choice({trainer.hub_token: hf_abc, a: 1})", "choice({trainer.hub_token: ***, a: 1})"),
        ("see https://host/path?a=1 or mail me@host", "see https://host/path?a=1 or mail me@host"),
        ("eos_token=<eos> tokens: 12", "eos_token=<eos> tokens: 12"),
    ],
)
def test_text_is_scrubbed(text: str, shown: str) -> None:
    assert scrub(text) == shown


def test_the_environments_secrets_are_found_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    monkeypatch.setenv("LONGER_TOKEN", "abcdefgh-and-more")
    monkeypatch.setenv("SHORT_KEY", "train")
    monkeypatch.setenv("ORDINARY", "ordinary-value")
    text = "train ordinary-value: GET abcdefgh-and-more, then abcdefgh!"
    assert scrub(text) == "train ordinary-value: GET ***, then ***!"
    assert masked("data.path", ["x/abcdefgh/y"]) == ["x/***/y"]


def test_a_problem_never_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    problems = [
        Problem(key="trainer.hub_token", value="hf_typed", message="is no key."),
        Problem(key="data.path", value="https://me:typed@host", message="cannot be reached."),
        Problem(key="model", value={"access_token": "typed"}, message="cannot be read."),
        Problem(key="config", message="cannot read hub_token=typed, nor hf_environment."),
    ]
    shown = str(ConfigError(problems))
    assert "typed" not in shown
    assert "hf_environment" not in shown
    assert "trainer.hub_token = ***: is no key." in shown
    assert shown.startswith("4 problems in the config:\n  - trainer.hub_token")


def test_the_first_line_of_a_librarys_error_is_a_whole_sentence() -> None:
    said = "Couldn't read it from one of:\n  (1) a file,\n(2) a folder.\nYou need more."
    assert first_line(ValueError(said)) == "Couldn't read it from one of: (1) a file, (2) a folder."
    assert first_line("") == "no message"
    assert first_line("GET https://me:hunter2hunter@host\nfailed") == "GET https://***@host"


CANARY = "canary7f3e9b2a6c5d4e8f1a0b"


@pytest.mark.parametrize(
    "word",
    [
        *(f"{key}=s3://key:{CANARY}@bucket/path" for key in ("run_dir", "storage")),
        f"storage='s3://bucket/path?access_key=ABC&secret_key={CANARY}'",
        f"cluster.address=ray://me:{CANARY}@host:10001",
        f"data.path='https://host/rows.jsonl?token={CANARY}'",
        f"model.path=https://me:{CANARY}@host/model",
        f"trainer.hub_token={CANARY}",
        f"+tracking.api_key={CANARY}",
        f"tracking.tags=['password={CANARY}']",
    ],
)
def test_a_secret_in_an_override_is_in_nothing_that_is_written(word: str) -> None:
    """sweep.yaml and the ledger hold the public config; the ledger and best/ hold the command."""
    config, _, name, run_dir = compose_config([word])
    assert CANARY in str(config) + run_dir
    assert CANARY not in f"{public(config)} {name} {run_dir} {command_line([word])}"
