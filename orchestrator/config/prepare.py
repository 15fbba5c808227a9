"""From a command line to a sweep that is ready to start: composed, checked, data prepared."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.command import guess_device
from orchestrator.config.preflight import (
    Findings,
    changes,
    device_memory_mb,
    largest,
    room_line,
    step_line,
)
from sweeps.config.spec import Spec, Strategy, TrainSpec
from sweeps.core.commands import command_line
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.core.secrets import scrub
from sweeps.core.trial import fingerprint
from sweeps.ledger.history import History
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder
from trainers.dry_run import failed_step

if TYPE_CHECKING:
    from trainers.data.dataset import PreparedData

Facts = dict[str, Any]

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("optuna", "ray", "wandb"),
)
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
    from trainers.data import dataset as source
    from trainers.data.fingerprint import fingerprint as data_fingerprint
    from trainers.memory_estimate import needs
    from trainers.model.loading import choose_for, fingerprint_base, target_problems
    from trainers.model.source import require_weights
    from trainers.sft.validation import notes

    findings = Findings()
    device = guess_device(spec)
    searched = space.values_by_key()
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
        _check_ground(past, "data", data_fingerprint(spec.train), accept=spec.accept_changes)
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
        from trainers.dry_run import rehearse
        from trainers.sft import trainer as sft_trainer

        try:
            found = rehearse(ready.largest, ready.data, folder, device, sft_trainer.train)
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


def _check_schedules(spec: Spec, space: Space, examples: int) -> None:
    """A schedule may be impossible for the number of steps that a trial will have."""
    from trainers.sft.config import schedule_problems

    problems: list[Problem] = []
    names = space.values_by_key().get("trainer.lr_scheduler_type") or [None]
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
    root = Path(__file__).parents[2]
    for path in sorted(p for room in _ROOMS for p in (root / room).rglob("*.py")):
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]
