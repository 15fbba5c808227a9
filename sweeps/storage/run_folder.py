"""The paths in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPORT = "report.json"  # in the folder of tokenized data
# There, too: [rows] int32, equal for rows of a split that share a prompt.
PROMPTS = {"eval": "eval_prompts.npy", "test": "test_prompts.npy"}
CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step-"
REMOVING_PREFIX = ".removing-"
REQUESTS = "requests"


class _Named:
    """The path of a file or folder whose name in the run folder is fixed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, _: type[RunFolder]) -> Path:
        return folder.root / self._name


@dataclass(frozen=True)
class RunFolder:
    """The paths of one sweep's files. The names are fixed: users' scripts may rely on them.

    Attributes:
        data: the tokenized data, prepared once by the driver and read by every worker.
        eval_prompts: which evaluation rows share a prompt.
        tracking: W&B's local files.
        tensorboard: event files, a folder for each trial.
        mlflow: a store of MLflow's.
        best_draft: the best checkpoint while it is put together; it is renamed to best/.
        scratch: Tune's own files while a driver lives; nothing in it is read back.
        token: the file by which another node recognizes this folder.
        refusal: the traceback of an unforeseen error that kept all trials from starting.
        requests: what verbs ask of the sweep, and the answers.
    """

    root: Path

    spec = _Named("sweep.yaml")
    ledger = _Named("ledger.jsonl")
    lock = _Named("lock")
    table = _Named("trials.csv")
    study = _Named("study.db")
    report = _Named("report.html")
    data = _Named("data")
    eval_prompts = _Named(f"data/{PROMPTS['eval']}")
    tracking = _Named("wandb")
    tensorboard = _Named("tensorboard")
    mlflow = _Named("mlflow.db")
    best = _Named("best")
    best_draft = _Named(".best.draft")
    scratch = _Named(".tune")
    token = _Named(".here")
    trials = _Named("trials")
    refusal = _Named("error.txt")
    requests = _Named(REQUESTS)

    @property
    def has_begun(self) -> bool:
        """Whether the ledger has a line: before that, nothing was trained."""
        return self.ledger.exists() and self.ledger.stat().st_size > 0

    def trial(self, key: str) -> Path:
        return self.trials / key

    def trial_config(self, key: str) -> Path:
        return self.trial(key) / "config.yaml"

    def metrics(self, key: str) -> Path:
        return self.trial(key) / "metrics.jsonl"

    def error(self, key: str) -> Path:
        return self.trial(key) / "error.txt"

    def row_losses(self, key: str) -> Path:
        """The losses of each evaluation row at the trial's best checkpoint."""
        return self.trial(key) / "row_losses.npy"

    def trial_files(self, key: str) -> tuple[Path, ...]:
        """The files of a trial beside its checkpoints, whether they exist or not."""
        return self.trial_config(key), self.metrics(key), self.error(key), self.row_losses(key)

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
