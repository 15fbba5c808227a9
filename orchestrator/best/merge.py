"""`python -m orchestrator export RUN_DIR --merge`: one plain model from the best adapter."""

from __future__ import annotations

from pathlib import Path

from orchestrator.best.model_card import is_ready, proof_of
from orchestrator.storage.run_dir import require_sweep
from sweeps.config.validation import read_train
from sweeps.core.commands import command_line
from sweeps.core.errors import SweepError
from sweeps.ledger.history import read_history
from sweeps.results.ranking import best
from sweeps.storage.run_folder import RunFolder


def export(run_dir: Path, *, merge: bool, to: Path | None) -> int:
    """Say what best/ is, and with `merge` fold its adapter into the base; 0.

    Raises:
        SweepError: there is no best/, nothing to merge, or the target is taken.
    """
    folder = RunFolder(run_dir.absolute())
    require_sweep(RunFolder(run_dir))
    proof = proof_of(folder)
    if proof is None:
        raise SweepError(
            f"{folder.root} has no best/ yet: its sweep has not ended, no trial completed, or the "
            "best checkpoint could not be made ready. See " + command_line(["status", str(run_dir)])
        )
    found = best(read_history(folder.ledger))
    if found is not None and not is_ready(folder, found):
        print(
            f"note: trial {found.record.number}, step {found.report.step}, is better than what "
            "best/ holds; the sweep's own command makes it ready"
        )
    if not merge:
        losses = dict.fromkeys((proof.get("metric", "eval_loss"), "eval_loss"))
        said = ", ".join(f"{name} {proof[name]:.4f}" for name in losses)
        print(f"{folder.best}  trial {proof['number']}, {said}")
        print("It loads as it is (see its README.md); --merge makes one model without an adapter.")
        return 0
    target = (to or folder.root / "merged").absolute()
    if target.exists() and any(target.iterdir()):
        raise SweepError(f"{target} is not empty; name another folder with --to DIR")
    from trainers.best_checkpoint import merge as merge_adapter

    train = read_train(proof["config"])
    eos_token = train.trainer.get("eos_token")
    merge_adapter(folder.best, target, train.model, eos_token=eos_token)
    print(f"{target}  loads with AutoModelForCausalLM.from_pretrained")
    return 0
