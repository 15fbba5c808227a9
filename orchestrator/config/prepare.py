"""Prepare the data of a sweep, and find what stands in its way in the data, model and machine."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
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
from orchestrator.config.run_folder_claim import as_begun, is_as_begun
from orchestrator.storage.run_dir import folder_of
from sweeps.config.spec import Kernels, Spec, Strategy, TrainSpec
from sweeps.config.trial_config import config_of
from sweeps.config.validation import read_train
from sweeps.core.commands import command_line
from sweeps.core.errors import Problem, SweepError
from sweeps.core.secrets import scrub
from sweeps.core.trial import fingerprint
from sweeps.core.versions import installed
from sweeps.ledger.events import Attempt
from sweeps.ledger.history import History
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder
from trainers.dry_run import failed_step
from trainers.trial.task import DryRun

if TYPE_CHECKING:
    from trainers.data.dataset import PreparedData
    from trainers.dry_run import Train

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("optuna", "ray", "wandb", "liger-kernel"),
)
_DECIDES_SCHEDULE = (
    *("trainer.lr_scheduler_type", "trainer.lr_scheduler_kwargs", "trainer.warmup_steps"),
    *("trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"),
)
# What decides which modules an adapter has and of which kind.
_SHAPES_ADAPTER = tuple(
    f"peft.{name}"
    for name in (
        *("method", "target_modules", "exclude_modules", "target_parameters", "modules_to_save"),
        *("layers_to_transform", "lora_dropout", "use_dora", "bias", "lora_bias"),
    )
)
_MOST_ADAPTERS = 16  # combinations: the model is built without its weights for each
_MOST_SCHEDULES = 1000  # combinations that are gone through: a second or two
_PACKAGES = ("sweeps", "trainers", "orchestrator")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A sweep that may start.

    Attributes:
        examples: training examples per trial.
        facts: what the ledger's `attempt` event says of this start.
        lines: describe model, data and budget to the user.
        largest: the training that takes the most memory.
        data: the prepared rows.
    """

    examples: int
    facts: Attempt
    lines: Sequence[str]
    largest: TrainSpec
    data: PreparedData

    @property
    def tokens(self) -> float:
        """Of a trial; those of its evaluations count a third, since they take no backward pass."""
        from trainers.data.preparation import lengths

        trained = float(lengths(self.data.train).mean()) * self.examples
        return trained + float(lengths(self.data.evaluation).sum()) * self.largest.evaluations / 3

    def known_dry_run(
        self,
        past: History,
        device: str,
        *,
        packed: bool,
        strategy: Strategy = "ddp",
        kernels: Kernels = "torch",
    ) -> tuple[str, DryRun | None]:
        """The identity of the dry run, and its result if it is known.

        It is known if the last start did the same step: same training and data, device, engine,
        kernels, libraries and code.
        """
        decisive = [asdict(self.largest), device, packed, strategy, kernels]
        decisive += [self.facts.data, self.facts.base, self.facts.versions, self.facts.code]
        identity = fingerprint(decisive, 16)
        before = past.driver.rehearsal or {}
        is_known = before.get("identity") == identity
        return identity, DryRun.recorded(before) if is_known else None


def prepare_training(
    spec: Spec,
    space: Space,
    folder: RunFolder,
    past: History,
    argv: Sequence[str],
) -> Ready:
    """Read, check and tokenize the data, and check the model, memory and disk, using no device.

    Raises:
        SweepError, ConfigError: everything that makes data, model or machine unfit, together; also
            that data or model have changed since the sweep began.
    """
    from trainers.data import dataset as source
    from trainers.data.fingerprint import fingerprint as data_fingerprint
    from trainers.memory_estimate import needs
    from trainers.model.loading import choose_for, fingerprint_base, target_problems
    from trainers.model.source import require_weights
    from trainers.sft.validation import notes, rounding_notes

    findings = Findings()
    device = guess_device(spec)
    searched = space.values_by_key()
    base = ""
    unknown: Sequence[Problem] = ()
    begun, told = folder_of(spec).has_begun and is_as_begun(spec, past.spec), list[str]()
    has_weights = False
    with findings.part():
        require_weights(spec.train.model)
        has_weights = True
        base = fingerprint_base(spec.train.model)
        unknown = target_problems(spec.train.model, spec.train.peft, searched)
        unknown = unknown or adapter_problems(spec, space)
        if begun:
            told, unknown = as_begun(unknown), ()
        findings.add(unknown)
        _check_unchanged("the base model", past.driver.base, base, accept=spec.accept_changes)
    with findings.part():
        runtime = choose_for(spec.train, device)
        big = largest(spec.train, searched)
        if not unknown:  # else PEFT would say the same in other words
            room = room_line(spec, needs(big.model, big.peft, runtime), device, folder.root)
            if not has_weights:
                raise SweepError(f"By its config.json alone the model {room}.")
    with findings.part():
        # Before it is prepared: what lies there is the old data's.
        fresh = data_fingerprint(spec.train)
        _check_unchanged("the training data", past.driver.data, fresh, accept=spec.accept_changes)
        data = source.prepare(spec.train, folder.data)
        examples = spec.sweep.budget.rows(len(data.train))
        unfit = schedule_problems(spec, space, examples)
        if begun:
            told, unfit = [*told, *as_begun(unfit)], []
        findings.add(unfit)
    findings.refuse()
    facts = Attempt(
        host=socket.gethostname(),
        pid=os.getpid(),
        command=scrub(command_line(argv)),
        data=data.fingerprint,
        base=base,
        examples=examples,
        versions=versions(),
        code=code(),
    )
    epochs = examples / len(data.train)
    evaluations = spec.sweep.evaluations
    lines = [
        f"model: {spec.train.model.path}, {spec.train.peft.get('method')}; {runtime.why}",
        room,
        *data.report.lines(),
        f"budget: {examples:,} examples a trial ({epochs:.2g} epochs), {evaluations} evaluations",
        *step_notes(spec, space, examples),
        *rounding_notes(spec.train, searched),
        *_loss_notes(spec),
        *notes(spec.train.trainer, searched=searched, device=device, evaluations=evaluations),
        *told,
        *changes(past.driver, facts),
    ]
    return Ready(examples=examples, facts=facts, lines=lines, largest=big, data=data)


def dry_run_line(
    ready: Ready,
    past: History,
    folder: Path,
    device: str,
    strategy: Strategy = "ddp",
    *,
    packed: bool = False,
    kernels: Kernels = "torch",
    more: Callable[[DryRun], Sequence[str]] = lambda _: (),
) -> str:
    """Train one step in this process, for `plan`, unless its result is known, and describe it.

    Args:
        more: what else is to be said of the step, a line each.
        packed: trials that can be lanes are; the step is then a lane's, as in the sweep.
        kernels: of the base of lanes.

    Raises:
        SweepError: the step fails; in the library's words.
    """
    _, found = ready.known_dry_run(past, device, packed=packed, strategy=strategy, kernels=kernels)
    if found is None:
        if strategy == "fsdp":
            return "no step was tried: it takes all devices of a trial; the sweep begins with one"
        if math.isinf(device_memory_mb(device)[0]):
            return "no step was tried: this machine has no GPU to try it on"
        from trainers.dry_run import dry_run

        try:
            train, note = _engine_of(ready.largest, device, packed=packed, kernels=kernels)
            found = dry_run(ready.largest, ready.data, folder, device, train)
            found = replace(found, note=note)
        except Exception as error:
            why, _ = failed_step(error, ready.largest)
            raise SweepError(why) from error
    return "\n".join([step_line(found), *more(found)])


def _engine_of(
    train: TrainSpec, device: str, *, packed: bool, kernels: Kernels
) -> tuple[Train, str]:
    """How the sweep trains this trial: as a lane if it can be one, else by SFTTrainer; a note."""
    from trainers.packed.compatibility import obstacle, settings

    if packed and not obstacle(train, device):
        from trainers.packed.engine import train_alone
        from trainers.packed.frozen_base import Base

        base = Base(train, settings(train), device, kernels=kernels)
        return partial(train_alone, base=base), base.note
    from trainers.sft import trainer as sft_trainer

    return sft_trainer.train, ""


def versions() -> dict[str, str]:
    """The version of Python and of each library that is installed."""
    return {"python": platform.python_version(), **installed(_LIBRARIES)}


def schedule_problems(spec: Spec, space: Space, examples: int) -> list[Problem]:
    """Schedules that are impossible for the number of steps that a trial will have.

    Every combination that the space can give of what decides it is tried, up to a number; of an
    interval, its ends.
    """
    from trainers.sft import config

    found: dict[tuple[str, str], Problem] = {}
    for values, train in _schedules(spec, space):
        for problem in config.schedule_problems(train.trainer, steps=train.steps(examples)):
            words = ", ".join(f"{key}={value}" for key, value in values.items())
            message = f"{problem.message} (The trial with {words}.)" if words else problem.message
            found.setdefault((str(problem.value), problem.key), replace(problem, message=message))
    return list(found.values())


def adapter_problems(spec: Spec, space: Space) -> list[Problem]:
    """Adapters that PEFT refuses for the model, of those that the space can give."""
    from trainers.model.loading import adapter_refusal

    part = space.over(_SHAPES_ADAPTER)
    seen: set[str] = set()
    for values in islice(part.ends() if part.dimensions else (), _MOST_SCHEDULES):
        train = read_train(config_of(spec, values))
        peft = {**train.peft, "r": 1, "lora_dropout": bool(train.peft.get("lora_dropout")) / 2}
        if train.trains_base or repr(peft) in seen:
            continue
        if why := adapter_refusal(train.model, peft):
            words = ", ".join(f"{key}={value}" for key, value in values.items())
            return [Problem(key="peft", message=f"{why.rstrip('.')}. (The trial with {words}.)")]
        seen.add(repr(peft))
        if len(seen) == _MOST_ADAPTERS:
            break
    return []


def _loss_notes(spec: Spec) -> list[str]:
    """Say if the model is trained by another loss than it is measured by."""
    from trainers.model.source import beyond_the_loss, load_config

    what = beyond_the_loss(load_config(spec.train.model))
    if what is None:
        return []
    return [
        f"{spec.train.model.path} has {what}, which SFTTrainer's loss leaves out: eval_loss is the "
        "model's own, and train_loss is not quite"
    ]


def step_notes(spec: Spec, space: Space, examples: int) -> list[str]:
    """Say which trials see fewer examples in all than one of their optimizer steps takes."""
    least = math.inf
    for values, train in _schedules(spec, space):
        rows = train.batch_size * train.accumulation_steps
        if examples < rows < least:
            least, words = rows, " ".join(f"{key}={value}" for key, value in values.items())
    if math.isinf(least):
        return []
    where = f" (the trial with {words})" if words else ""
    return [
        f"sweep.budget gives a trial {examples:,} examples, less than one optimizer step of "
        f"{least:,}{where}: it takes one step of {examples:,}"
    ]


def _schedules(spec: Spec, space: Space) -> Iterator[tuple[Mapping[str, Any], TrainSpec]]:
    """The searched values that decide schedules, in every combination, and the training of each."""
    for values in islice(space.over(_DECIDES_SCHEDULE).ends(), _MOST_SCHEDULES):
        yield values, read_train(config_of(spec, values))


def _check_unchanged(words: str, before: str | None, now: str, *, accept: bool) -> None:
    """Refuse data or a base model that has changed since the sweep began, unless accepted."""
    if before is not None and before != now and not accept:
        raise SweepError(
            f"{words} changed since this sweep began ({before}, now {now}): its trials could not "
            "be compared. Give back the old one, choose another run_dir=..., or accept it with "
            "accept_changes=true"
        )


def code() -> str:
    """A hash of this program's own source code."""
    seen = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(p for package in _PACKAGES for p in (root / package).rglob("*.py")):
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]
