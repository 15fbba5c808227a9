"""From a command line to a sweep that is ready to start: composed, checked, data prepared."""

from __future__ import annotations

import os
import platform
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from orchestrator import compose
from orchestrator.checks import read_space, spec_problems, training_problems
from sweeps.errors import ConfigError, Problem, SweepError
from sweeps.files import RunFolder, write_text
from sweeps.history import History
from sweeps.reading import read_spec
from sweeps.secrets import scrub
from sweeps.space import Space
from sweeps.spec import Spec

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("optuna", "ray", "wandb"),
)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A sweep that may start.

    Attributes:
        examples: training examples per trial, counted.
        facts: what the ledger should know of this start.
        lines: what the data and the model are, for the user.
    """

    examples: int
    facts: Mapping[str, Any]
    lines: Sequence[str]


def read_command(argv: Sequence[str]) -> tuple[Spec, Space]:
    """The spec and the space of a command line.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    config, base, name, run_dir = compose.compose_config(argv)
    problems: list[Problem] = []
    spec = read_spec(
        config,
        base=base,
        public=compose.public(config),
        default_name=name,
        default_run_dir=run_dir,
        problems=problems,
    )
    space = read_space(config, problems)
    device = guess_device(spec) if spec is not None else "cpu"
    problems += training_problems(config["trainer"], config["peft"], space, device)
    if spec is not None:
        problems += spec_problems(spec, space)
    if problems or spec is None:
        raise ConfigError(problems)
    return spec, space


def guess_device(spec: Spec) -> str:
    """Where trials will train, before the cluster is asked: this machine stands for the others."""
    gpus = spec.engine.gpus_per_trial
    if gpus == 0 or spec.cluster.gpus == 0:
        return "cpu"
    if gpus != "auto":
        return "cuda"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def claim_folder(folder: RunFolder, spec: Spec) -> None:
    """Write sweep.yaml, or see that the one there says the same.

    Raises:
        SweepError: the folder holds another sweep; the differences are shown.
    """
    if folder.spec.exists():
        written = OmegaConf.to_container(OmegaConf.load(folder.spec))
        assert isinstance(written, dict)
        changed = compose.differences(spec, {str(key): value for key, value in written.items()})
        if changed:
            rows = "\n".join(
                f"  {key}: there {there!r}, now {now!r}" for key, there, now in changed
            )
            raise SweepError(
                f"{folder.root} holds another sweep:\n{rows}\n"
                "Give the same settings to go on with it, or choose another run_dir=..."
            )
    head = "# The resolved config of this sweep; secrets are left out.\n"
    write_text(folder.spec, head + OmegaConf.to_yaml(OmegaConf.create(dict(spec.public))))


def prepare_training(
    spec: Spec, space: Space, folder: RunFolder, past: History, argv: Sequence[str]
) -> Ready:
    """Read, check and tokenize the data, look at the model; nothing is on a device yet.

    Raises:
        SweepError, ConfigError: whatever makes data or model unfit; or either has changed since
            the sweep's first start.
    """
    from trainers.data import prepare
    from trainers.model import choose, fingerprint_base, target_problems
    from trainers.settings import notes

    problems = target_problems(spec.train.model, spec.train.peft)
    if problems:
        raise ConfigError(problems)
    device = guess_device(spec)
    trains_base = spec.train.peft.get("method") == "full"
    runtime = choose(spec.train.model, device, trains_base=trains_base)
    data = prepare(spec.train, folder.data)
    examples = spec.sweep.budget.rows(len(data.train))
    _check_schedules(spec, space, examples)
    facts = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": scrub(command_line(argv)),
        "data": data.fingerprint,
        "base": fingerprint_base(spec.train.model),
        "examples": examples,
        "versions": versions(),
    }
    _check_ground(past, facts)
    epochs = examples / len(data.train)
    said = notes(
        spec.train.trainer,
        searched=_searched(space),
        device=device,
        evaluations=spec.sweep.evaluations,
    )
    lines = [
        f"model: {spec.train.model.path}, {spec.train.peft.get('method')}; {runtime.why}",
        *data.report.lines(),
        f"budget: {examples:,} examples a trial ({epochs:.2g} epochs), "
        f"{spec.sweep.evaluations} evaluations",
        *said,
    ]
    return Ready(examples=examples, facts=facts, lines=lines)


def command_line(argv: Sequence[str]) -> str:
    """The command as the user would type it again, secrets masked."""
    words = [compose.masked_word(*word.split("=", 1)) if "=" in word else word for word in argv]
    return shlex.join(["python", "-m", "orchestrator", *words])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _searched(space: Space) -> dict[str, list[Any]]:
    from orchestrator.checks import searched_values

    return searched_values(space)


def _check_schedules(spec: Spec, space: Space, examples: int) -> None:
    """A schedule may be impossible for the number of steps that a trial will have."""
    from trainers.settings import schedule_problems

    problems: list[Problem] = []
    names = _searched(space).get("trainer.lr_scheduler_type") or [None]
    for name in names:
        trainer = dict(spec.train.trainer)
        if name is not None:
            trainer["lr_scheduler_type"] = name
        found = schedule_problems(trainer, steps=spec.train.steps(examples))
        problems += [problem for problem in found if problem not in problems]
    if problems:
        raise ConfigError(problems)


def _check_ground(past: History, facts: Mapping[str, Any]) -> None:
    """The data and the base model of a sweep do not change under its feet."""
    names = {"data": "the training data", "base": "the base model"}
    for name, words in names.items():
        before = past.driver.get(name)
        if before is not None and before != facts[name]:
            raise SweepError(
                f"{words} changed since this sweep began ({before}, now {facts[name]}): its trials "
                "could not be compared. Give back the old one, or choose another run_dir=..."
            )


def run_folder(spec: Spec) -> RunFolder:
    return RunFolder(Path(spec.run_dir).absolute())
