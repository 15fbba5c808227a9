"""Keeps one trial of an engine between two micro-steps, and takes its optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from sweeps.core import fault_injection
from sweeps.core.trial import Decision, State
from trainers.packed.adapter_bank import Adapter, Bank, Slot
from trainers.packed.compatibility import log_every
from trainers.packed.dropout import Stream
from trainers.packed.micro_batches import MicroBatch, Windows
from trainers.packed.optimizer import Stepping
from trainers.trial.evaluation import Measured
from trainers.trial.failures import require_finite
from trainers.trial.reporting import TrialReporter
from trainers.trial.task import Outcome, Task


@dataclass(kw_only=True)
class Lane:
    """One trial's adapter, optimizer, order of rows and counts; `Engine.advance` drives it.

    Attributes:
        steps: optimizer steps of the whole trial.
        looks_later: on a GPU, numbers are read at the next log: reading one waits for the device.
        leaving: the trial was told to stop.
        loss: sum of the micro-batches' losses since the last log.
        hits: sum of the micro-batches' shares of tokens predicted best.
    """

    task: Task
    chosen: SimpleNamespace
    record: TrialReporter
    adapter: Adapter
    bank: Bank
    slot: Slot
    stepping: Stepping
    windows: Windows
    stream: Stream
    steps: int
    device: torch.device
    history: list[dict[str, float]]
    looks_later: bool = field(init=False)
    leaving: bool = False
    in_window: bool = False  # its gradient holds micro-batches already
    loss: torch.Tensor = field(init=False)
    hits: torch.Tensor = field(init=False)
    batches: int = 0
    _grads_before: torch.Tensor | None = None
    _unread: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _alive: torch.Tensor | None = None  # on a GPU: all numbers so far were finite
    _rate: float = 0.0
    _norm: float = 0.0
    _last_log: int = 0

    def __post_init__(self) -> None:
        self.looks_later = self.device.type != "cpu"
        self._last_log = self.record.step
        self._clear()

    def _clear(self) -> None:
        self.loss = torch.zeros((), device=self.device)
        self.hits = torch.zeros((), device=self.device)
        self.batches = 0

    @property
    def is_done(self) -> bool:
        return self.record.step >= self.steps

    def take(self) -> MicroBatch:
        """Take the rows of the next micro-batch."""
        fault_injection.passing("batch")
        return self.windows.next(self.record.step)

    def begin_pass(self) -> None:
        """Note what a pass that fails has to give back: the gradient so far, dropout's state."""
        self._grads_before = self.slot.grads.clone() if self.in_window else None
        self.stream.begin(in_window=self.in_window)

    def undo_pass(self) -> None:
        """Undo a pass that failed."""
        self.stream.undo()
        if self._grads_before is None:
            self.slot.grads.zero_()
        else:
            self.slot.grads.copy_(self._grads_before)

    def give_up_window(self) -> None:
        """Be as after the last optimizer step: whoever goes on computes the window again."""
        self.stream.undo_window()
        self.in_window = False

    def add(self, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """Count a micro-batch that was passed.

        Args:
            loss: its share of the window's loss.
            hits: the share of its tokens that were predicted.
        """
        self._grads_before = None
        self.loss = self.loss + loss
        self.hits = self.hits + hits
        self.batches += 1
        self.in_window = True

    def step(self) -> None:
        """Take the optimizer step at the end of a window.

        On a CPU a number that is not finite is found before the step. On a GPU reading it would
        wait for the device: there the step is undone on the device, as are all later ones, and
        `read` raises.

        Raises:
            DivergedError: a number was not finite.
        """
        norm = self.stepping.clip()
        self._unread.append((self.record.step + 1, self.loss, norm))
        if self.looks_later:
            self._masked_step(norm)
        else:
            self.read()
            self._rate = self.stepping.step()
        self.bank.changed()
        self.in_window = False
        self.record.stepped()
        if not self.record.state_bytes:
            self.record.state_bytes = self.stepping.state_bytes

    def _masked_step(self, norm: torch.Tensor) -> None:
        is_good = torch.isfinite(self.loss) & torch.isfinite(norm)
        self._alive = is_good if self._alive is None else self._alive & is_good
        before = self.slot.weights.clone()
        self._rate = self.stepping.step()
        self.slot.weights.copy_(torch.where(self._alive, self.slot.weights, before))

    def read(self) -> None:
        """Check the numbers of the steps since the last check; the one wait for the device.

        Raises:
            DivergedError: a number was not finite.
        """
        if not self._unread:
            return
        values = torch.stack([torch.stack([x, n.to(x.dtype)]) for _, x, n in self._unread]).tolist()
        steps = [step for step, *_ in self._unread]
        self._unread.clear()
        for step, (loss, norm) in zip(steps, values, strict=True):
            require_finite("the training loss", loss, step)
            require_finite("the gradient norm", norm, step)
        self._norm = values[-1][1]

    @property
    def is_due(self) -> bool:
        """Whether to evaluate, report and save at this step."""
        return self.record.step in self.record.due

    @property
    def is_to_log(self) -> bool:
        step = self.record.step
        first = step == 1 and self.chosen.logging_first_step
        return first or self.is_due or step % log_every(self.chosen, self.steps) == 0

    def log(self) -> None:
        """Log the steps since the last log."""
        self.read()
        loss, hits = torch.stack([self.loss, self.hits]).tolist()
        values = {
            "loss": loss / (self.record.step - self._last_log),
            "learning_rate": self._rate,
            "grad_norm": self._norm,
            "mean_token_accuracy": hits / self.batches,
        }
        self._last_log = self.record.step
        self._clear()
        self.history.append({"step": self.record.step, **values})
        if self.record.log(values) is Decision.STOP:
            self.leaving = True

    def listen(self) -> None:
        """Hear between two logs if the trial was told to stop."""
        self.leaving = self.leaving or self.record.told() is Decision.STOP

    def report(self, measured: Measured) -> Decision:
        """Report an evaluation at this step.

        Raises:
            DivergedError: it is not finite.
        """
        require_finite("eval_loss", measured.loss, self.record.step)
        decision = self.record.report(measured)
        self.stepping.evaluated(measured.loss)
        self.leaving = self.leaving or decision is Decision.STOP
        return decision

    def outcome(self, state: State) -> Outcome:
        return Outcome(state=state, totals=self.record.outcome())
