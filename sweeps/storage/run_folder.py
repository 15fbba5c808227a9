"""The paths in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPORT = "report.json"  # in the folder of tokenized data
CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step-"
REMOVING_PREFIX = ".removing-"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one sweep's files. The names are fixed: users' scripts may rely on them."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def has_begun(self) -> bool:
        """Whether the ledger has a line: before that, nothing was trained."""
        return self.ledger.exists() and self.ledger.stat().st_size > 0

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def table(self) -> Path:
        return self.root / "trials.csv"

    @property
    def study(self) -> Path:
        return self.root / "study.db"

    @property
    def data(self) -> Path:
        """The tokenized data, prepared once by the driver and read by every worker."""
        return self.root / "data"

    @property
    def tracking(self) -> Path:
        """W&B's local files."""
        return self.root / "wandb"

    @property
    def best(self) -> Path:
        return self.root / "best"

    @property
    def best_draft(self) -> Path:
        """The best checkpoint while it is put together; it is renamed to best/."""
        return self.root / ".best.draft"

    @property
    def scratch(self) -> Path:
        """Tune's own files while a driver lives; nothing in it is read back."""
        return self.root / ".tune"

    @property
    def token(self) -> Path:
        """The file by which another node recognizes this folder."""
        return self.root / ".here"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    def trial(self, key: str) -> Path:
        return self.trials / key

    def trial_config(self, key: str) -> Path:
        return self.trial(key) / "config.yaml"

    def metrics(self, key: str) -> Path:
        return self.trial(key) / "metrics.jsonl"

    @property
    def refusal(self) -> Path:
        """The traceback of an unforeseen error that kept all trials from starting."""
        return self.root / "error.txt"

    def error(self, key: str) -> Path:
        return self.trial(key) / "error.txt"

    def trial_files(self, key: str) -> tuple[Path, ...]:
        """The files of a trial beside its checkpoints, whether they exist or not."""
        return self.trial_config(key), self.metrics(key), self.error(key)

    def checkpoints(self, key: str) -> Path:
        return self.trial(key) / CHECKPOINTS

    def checkpoint(self, key: str, step: int) -> Path:
        return self.checkpoints(key) / f"{STEP_PREFIX}{step:06d}"

    def name(self, path: Path) -> str:
        """The name in a store of the copy of `path`, a file or folder in here."""
        return path.relative_to(self.root).as_posix()


def checkpoint_step(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, or None for any other folder."""
    digits = folder.name.removeprefix(STEP_PREFIX)
    return int(digits) if folder.name != digits and digits.isdecimal() else None


def is_prepared(data: Path) -> bool:
    """Whether a folder holds tokenized data, and not something of the user's."""
    return (data / REPORT).is_file()


def folder_text(path: Path) -> str:
    """A path as the user would type it: relative if it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
