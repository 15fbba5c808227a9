"""Says why a sweep stops before its end, and which exit code a start has."""

from __future__ import annotations

import enum
from dataclasses import dataclass

CANCELLED_EXIT = 130  # as after Ctrl-C
_WHOLE = "what was written before is whole"


class Cause(enum.Enum):
    """Why no more trials are handed out. The value is what the user is told, `{}` what varies."""

    SIGNAL = "{}"  # its name
    TIME_BUDGET = "the time budget is spent"
    DEVICE_HOURS = "the device-hours are spent"
    FINISHED = "{} has ended the sweep"
    CANCELLED = "cancelled by {}"
    SAME_ERROR = "the first {} trials failed with the same error"
    WORKERS_DIE = "workers die before they can train anything: {}"
    UNFIT_NODES = "{}"  # what each of them lacks
    NO_ROOM = "no node of the cluster has room for a trial"
    NO_SUGGESTION = f"no trial could be made ({{}}); {_WHOLE}"
    LEDGER_UNWRITABLE = f"{{}} cannot be written ({{}}); {_WHOLE}"
    DISK_FULL = f"{{}}; {_WHOLE}"

    @property
    def is_failure(self) -> bool:
        """Whether the sweep could not go on; otherwise it was asked to stop."""
        return self not in _ASKED

    @property
    def is_by_hand(self) -> bool:
        """Whether a person or a batch system asked for it at that moment."""
        return self in (Cause.SIGNAL, Cause.FINISHED, Cause.CANCELLED)


_ASKED = (Cause.SIGNAL, Cause.TIME_BUDGET, Cause.DEVICE_HOURS, Cause.FINISHED, Cause.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A stop before the end; `details` fill the words of its cause."""

    cause: Cause
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.cause.value.format(*self.details)


def exit_code(
    *,
    completed: int,
    failed: int,
    stop: Stop | None = None,
    signal_code: int = 0,
    is_proven: bool = True,
) -> int:
    """The exit code of a start that has come to its end; docs/run-folder.md has the table.

    Args:
        completed, failed: trials in these states, of all starts.
        stop: why it stopped before its end, if it did.
        signal_code: of the signal that was taken; 0 if there was none.
        is_proven: whether nothing went wrong as the best checkpoint was loaded and measured again.
    """
    if stop is not None and stop.cause.is_failure:
        return 1
    if signal_code:
        return signal_code
    if stop is not None and stop.cause is Cause.CANCELLED:
        return CANCELLED_EXIT
    if not completed or not is_proven:
        return 1
    return 4 if failed else 0
