"""From a command line to a sweep that is ready to start: composed, checked, data prepared."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from orchestrator import compose
from orchestrator.checks import read_space, spec_problems, training_problems
from orchestrator.engines import engine_problems
from orchestrator.gpus import usable
from orchestrator.imports import leave_out, unneeded
from orchestrator.preflight import (
    Findings,
    changes,
    device_memory_mb,
    failed_step,
    largest,
    room_line,
    step_line,
)
from orchestrator.tune import gpus_of_cluster
from sweeps.commands import command_line
from sweeps.errors import ConfigError, Problem, SweepError
from sweeps.files import RunFolder, is_prepared, write_text
from sweeps.history import History
from sweeps.reading import read_spec, section_problems
from sweeps.secrets import scrub
from sweeps.space import Space
from sweeps.spec import Spec, Strategy, TrainSpec
from sweeps.trial import fingerprint

if TYPE_CHECKING:
    from trainers.data import PreparedData

Facts = dict[str, Any]

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("optuna", "ray", "wandb"),
)
SPEC_HEAD = "# The resolved config of this sweep; secrets are left out."
_ROOMS = ("sweeps", "trainers", "orchestrator")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A sweep that may start.

    Attributes:
        examples: training examples per trial, counted.
        facts: what the ledger should know of this start.
        lines: what the data and the model are, for the user.
        largest: the training that takes the most memory.
        data: its rows.
    """

    examples: int
    facts: Mapping[str, Any]
    lines: Sequence[str]
    largest: TrainSpec
    data: PreparedData

    def rehearsed(
        self, past: History, device: str, *, packed: bool, strategy: Strategy = "ddp"
    ) -> Facts:
        """What to tell the ledger of the rehearsal: what is known of it, or its identity alone.

        It is known where the last start did the same step: same training and data, device, engine,
        libraries and code.
        """
        decisive = [asdict(self.largest), device, packed, strategy]
        decisive += [self.facts[name] for name in ("data", "base", "versions", "code")]
        identity = fingerprint(decisive, 16)
        before = past.driver.get("rehearsal") or {}
        return dict(before) if before.get("identity") == identity else {"identity": identity}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, read; the libraries have not been asked yet.

    Attributes:
        spec: None where a part of the config is not even of its kind.
        problems: what is wrong with it as far as one can see without them.
    """

    config: Mapping[str, Any]
    spec: Spec | None
    space: Space
    problems: Sequence[Problem]

    @classmethod
    def read(cls, argv: Sequence[str]) -> Command:
        """Read a command line.

        Raises:
            ConfigError: nothing more can be said of it.
        """
        return cls.of(*compose.compose_config(argv))

    @classmethod
    def of(
        cls, config: Mapping[str, Any], base: Mapping[str, Any], name: str, run_dir: str
    ) -> Command:
        """The same, of what `compose_config` returned."""
        problems = section_problems(config)
        if problems:
            raise ConfigError(problems)
        spec = read_spec(
            config,
            base=base,
            public=compose.public(config),
            default_name=name,
            default_run_dir=run_dir,
            problems=problems,
        )
        return cls(config=config, spec=spec, space=read_space(config, problems), problems=problems)

    def check(self, *, lean: bool = False) -> tuple[Spec, Space]:
        """Ask the libraries, whose imports take seconds; the spec and the space if all is well.

        Args:
            lean: leave libraries out of this process that the sweep has no use for.

        Raises:
            ConfigError: everything that is wrong.
        """
        spec, space, problems = self.spec, self.space, list(self.problems)
        if lean and spec is not None:
            tracks = spec.tracking.mode != "off"
            leave_out([name for name in unneeded(spec, space) if name != "wandb" or not tracks])
        device = guess_device(spec) if spec is not None else "cpu"
        problems += training_problems(self.config, space, device)
        if spec is not None:
            problems += spec_problems(spec, space)
        if spec is not None and not problems:
            problems += engine_problems(spec, space, device)
        if problems or spec is None:
            raise ConfigError(problems)
        return spec, space


def read_command(argv: Sequence[str]) -> tuple[Spec, Space]:
    """The spec and the space of a command line, checked; raises ConfigError."""
    return Command.read(argv).check()


def guess_device(spec: Spec) -> str:
    """Where trials will train, before they are placed.

    A cluster that was joined is asked what it has; else this machine stands for all.
    """
    gpus = spec.engine.gpus_per_trial
    is_local = spec.cluster.kind == "local"
    if gpus == 0 or (is_local and spec.cluster.gpus == 0):
        return "cpu"
    if gpus != "auto":
        return "cuda"
    found = None if is_local else gpus_of_cluster()
    return "cuda" if (usable() if found is None else found) else "cpu"


def asks_cluster(spec: Spec) -> bool:
    """Whether what a sweep trains on is only known once its cluster is joined."""
    return spec.cluster.kind != "local" and spec.engine.gpus_per_trial == "auto"


def claim_folder(folder: RunFolder, spec: Spec) -> None:
    """Write sweep.yaml, or see that the one there says the same.

    Raises:
        SweepError: the folder holds another sweep; the differences are shown.
    """
    if folder.has_begun and folder.spec.exists():  # else nothing was trained by what it says
        changed = compose.differences(spec, _written(folder))
        if changed:
            rows = "\n".join(
                f"  {key}: there {there!r}, now {now!r}" for key, there, now in changed
            )
            raise SweepError(
                f"{folder.root} holds another sweep:\n{rows}\n"
                "Give the same settings to go on with it, or choose another run_dir=..."
            )
    text = OmegaConf.to_yaml(OmegaConf.create(dict(spec.public)))
    write_text(folder.spec, f"{SPEC_HEAD}\n{text}")


def _written(folder: RunFolder) -> dict[str, Any]:
    """What sweep.yaml says."""
    try:
        config = yaml.safe_load(folder.spec.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise SweepError(
            f"{folder.spec} cannot be read: it says what this folder's sweep is. Restore it from a "
            "copy, or choose another run_dir=..."
        )
    return {str(key): value for key, value in config.items()}


def refuse_strangers(folder: RunFolder) -> None:
    """See that nothing of the user's lies where a sweep would write.

    Raises:
        SweepError: there is no sweep in the folder, and files of the names that one has.
    """
    if folder.has_begun:
        return
    ours = (folder.trials, folder.best, folder.tracking, folder.table, folder.study)
    there = [path for path in ours if path.exists()]
    # These may be of a start that was killed before its ledger began.
    there += [
        path
        for path, is_ours in (
            (folder.data, is_prepared),
            (folder.spec, lambda path: _begins(path, rf"{re.escape(SPEC_HEAD)}\n")),
            (folder.lock, lambda path: _begins(path, r"(\S+, pid \d+)?\n?$")),
        )
        if path.exists() and not is_ours(path)
    ]
    if there:
        names = ", ".join(path.name for path in there)
        raise SweepError(
            f"{folder.root} holds no sweep, but has {names} in it, which a sweep would write over. "
            "Choose another run_dir=..., a folder that is empty or new."
        )


def _begins(path: Path, pattern: str) -> bool:
    try:
        return re.match(pattern, path.read_text(encoding="utf-8")) is not None
    except (OSError, ValueError):
        return False


def prepare_training(
    spec: Spec,
    space: Space,
    folder: RunFolder,
    past: History,
    argv: Sequence[str],
) -> Ready:
    """Read, check and tokenize the data, look at the model, memory and disk; on no device.

    Raises:
        SweepError, ConfigError: everything that makes data, model or machine unfit, together; or
            data or model have changed since the sweep's last start.
    """
    from trainers import data as source
    from trainers.model import choose_for, fingerprint_base, target_problems
    from trainers.model_source import require_weights
    from trainers.needs import needs
    from trainers.settings import notes

    findings = Findings()
    device = guess_device(spec)
    searched = _searched(space)
    base = ""
    unknown: Sequence[Problem] = ()
    with findings.part():
        require_weights(spec.train.model)
        base = fingerprint_base(spec.train.model)
        unknown = target_problems(spec.train.model, spec.train.peft)
        findings.add(unknown)
        _check_ground(past, "base", base, accept=spec.accept_changes)
    with findings.part():
        runtime = choose_for(spec.train, device)
        big = largest(spec.train, searched)
        if not unknown:  # else PEFT would say the same in other words
            room = room_line(spec, needs(big.model, big.peft, runtime), device, folder.root)
    with findings.part():
        # Before it is prepared: what lies there is the old data's.
        _check_ground(past, "data", source.fingerprint(spec.train), accept=spec.accept_changes)
        data = source.prepare(spec.train, folder.data)
        examples = spec.sweep.budget.rows(len(data.train))
        _check_schedules(spec, space, examples)
    findings.refuse()
    facts = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": scrub(command_line(argv)),
        "data": data.fingerprint,
        "base": base,
        "examples": examples,
        "versions": versions(),
        "code": code(),
    }
    epochs = examples / len(data.train)
    said = notes(
        spec.train.trainer,
        searched=searched,
        device=device,
        evaluations=spec.sweep.evaluations,
    )
    lines = [
        f"model: {spec.train.model.path}, {spec.train.peft.get('method')}; {runtime.why}",
        room,
        *data.report.lines(),
        f"budget: {examples:,} examples a trial ({epochs:.2g} epochs), "
        f"{spec.sweep.evaluations} evaluations",
        *said,
        *changes(past.driver, facts),
    ]
    return Ready(examples=examples, facts=facts, lines=lines, largest=big, data=data)


def rehearsal_line(
    ready: Ready, past: History, folder: Path, device: str, strategy: Strategy = "ddp"
) -> str:
    """One step in this process, for `plan`; or what is known of it.

    Raises:
        SweepError: it fails; in the library's words.
    """
    known = ready.rehearsed(past, device, packed=False, strategy=strategy)
    if "rows" not in known:
        if strategy == "fsdp":
            return "no step was tried: it takes all devices of a trial; the sweep begins with one"
        if math.isinf(device_memory_mb(device)[0]):
            return "no step was tried: this machine has no GPU to try it on"
        from trainers import solo
        from trainers.rehearsal import rehearse

        try:
            found = rehearse(ready.largest, ready.data, folder, device, solo.train)
        except Exception as error:
            why, _ = failed_step(error, ready.largest)
            raise SweepError(why) from error
        known = asdict(found)
    return step_line(known)


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


def _check_ground(past: History, name: str, now: str, *, accept: bool) -> None:
    """The data and the base model of a sweep do not change under its feet."""
    words = {"data": "the training data", "base": "the base model"}[name]
    before = past.driver.get(name)
    if before is not None and before != now and not accept:
        raise SweepError(
            f"{words} changed since this sweep began ({before}, now {now}): its trials could not "
            "be compared. Give back the old one, choose another run_dir=..., or accept it with "
            "accept_changes=true"
        )


def code() -> str:
    """A hash of this program's own source."""
    seen = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(p for room in _ROOMS for p in (root / room).rglob("*.py")):
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]
