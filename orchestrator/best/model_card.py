"""Writes best/: the winner's checkpoint, its model card, and the command that trains it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sweeps.config.spec import SearchSpec, Spec
from sweeps.config.trial_config import SECTIONS, config_of
from sweeps.config.validation import without_strategy
from sweeps.core.commands import UnwritableError, command_line, override
from sweeps.core.naming import trial_name
from sweeps.core.secrets import masked
from sweeps.ledger.history import History
from sweeps.results.outlook import outlook
from sweeps.results.ranking import Best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import ranked
from sweeps.storage.durable_writes import publish, write_text
from sweeps.storage.run_folder import RunFolder

_TOP = 5


def proof_of(folder: RunFolder) -> dict[str, Any] | None:
    """Read best/trial.yaml; None if there is no best/ yet, or it cannot be read."""
    try:
        data = yaml.safe_load((folder.best / "trial.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the checkpoint is verified again
    is_ours = isinstance(data, dict) and {"trial", "number", "step", "eval_loss"} <= data.keys()
    return data if is_ours and isinstance(data.get("proof"), dict) else None


def is_ready(folder: RunFolder, found: Best | None) -> bool:
    """Whether best/ holds the best checkpoint; true if there is none."""
    proof = proof_of(folder)
    if found is None or proof is None:
        return found is None
    return (proof["trial"], proof["step"]) == (found.record.key, found.report.step)


def write_best(
    folder: RunFolder,
    spec: Spec,
    history: History,
    found: Best,
    proof: Mapping[str, float],
) -> None:
    """Finish the folder that a worker made and verified, and rename it to best/."""
    draft = folder.best_draft
    ready = is_ready(folder, found)
    if not draft.is_dir() and not ready:
        return
    target = folder.best if ready else draft
    again = train_again(spec, found)
    facts = {
        "trial": found.record.key,
        "number": found.record.number,
        "step": found.report.step,
        "seed": found.record.seed,
        "metric": history.metric,
        **{name: found.report.metrics[name] for name in (history.metric, "eval_loss")},
        "values": masked("", dict(found.record.values)),
        "proof": dict(proof),
        "again": again,
        "config": yaml.safe_load(folder.trial_config(found.record.key).read_text(encoding="utf-8")),
    }
    write_text(target / "README.md", card(folder, spec, history, found, proof, again))
    write_text(target / "trial.yaml", yaml.safe_dump(facts, sort_keys=False))
    if not ready:
        publish(draft, folder.best, "best")


def train_again(spec: Spec, found: Best) -> str | None:
    """The command that trains the winner again, alone; None if no command line can express it."""
    from orchestrator.config.compose import compose_config, composed_of
    from orchestrator.config.config_files import groups
    from orchestrator.config.decisions import is_within

    # Masked before it is quoted: a secret of the environment may hold what quotes escape.
    config: Any = masked("", config_of(spec, found.record.values, found.record.repeat))
    chosen = {
        "sweep": "base",
        "data": config["data"]["source"],
        "peft": config["peft"].get("method"),
    }
    files = [f"{group}={choice}" for group, choice in chosen.items() if choice in groups()[group]]
    kind = "examples" if spec.sweep.budget.examples is not None else "epochs"
    metric = spec.sweep.metric
    try:
        if config["data"]["path"] is not None:  # mandatory in some of the files
            files.append(override("data.path", config["data"]["path"]))
        default = compose_config(files)[0]
        words = [
            *files,
            override("run_dir", f"{spec.run_dir}-again"),
            *_differences(default, config),
            *([] if metric == SearchSpec.metric else [override("sweep.metric", metric)]),
            override("seed", found.record.seed),
            override(f"sweep.budget.{kind}", config["budget"][kind]),
            override("sweep.evaluations", spec.sweep.evaluations),
        ]
        unread = [problem.key for problem in composed_of(words).problems]
    except UnwritableError:
        return None
    # What the winner does not read is a part of its config, and of its key, all the same.
    forced = [key for word in words if "." in (key := word.partition("=")[0])]
    forced = [key for key in forced if any(is_within(each, [key]) for each in unread)]
    return command_line([f"++{w}" if w.partition("=")[0] in forced else w for w in words])


def _differences(default: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Overrides that make the training sections of `config` out of those of `default`."""
    trains_base = config["peft"].get("method") == "full"  # then nothing reads LoraConfig's fields
    for section in [each for each in SECTIONS if each != "peft" or not trains_base]:
        there, now = without_strategy(default[section]), config[section]
        for name, value in now.items():
            if name not in there or repr(there[name]) != repr(value):  # 1 is not 1.0 in a key
                yield override(f"{section}.{name}", value)
        yield from (f"~{section}.{name}" for name in there if name not in now)


def card(
    folder: RunFolder,
    spec: Spec,
    history: History,
    found: Best,
    proof: Mapping[str, float],
    again: str | None,
) -> str:
    """Fill in the model card beside this module, in the Hub's format."""
    from huggingface_hub import ModelCard, ModelCardData

    from trainers.best_checkpoint import base_name

    base = base_name(spec.train.model)
    comparison = compare(history, folder)
    is_adapter = not spec.train.trains_base
    filled = ModelCard.from_template(
        ModelCardData(
            base_model=spec.train.model.path if "/" in spec.train.model.path else base,
            library_name="peft" if is_adapter else "transformers",
            tags=["sft", "lora"] if is_adapter else ["sft"],
        ),
        template_path=str(Path(__file__).with_suffix(".md")),
        name=spec.name,
        base=base,
        data=_data(spec),
        is_adapter=is_adapter,
        metric=history.metric,
        best=found,
        base_loss=history.base.metrics["eval_loss"] if history.base else None,
        proof=proof,
        tested=tested_text(history, found, proof),
        rows=[row for row in ranked(history, comparison) if row.rank is not None][:_TOP],
        sure=[] if comparison is None else comparison.lines(),
        trial_name=trial_name,
        hints=outlook(history, folder),
        again=again,
    )
    return f"{filled}\n"


def tested_text(history: History, found: Best, proof: Mapping[str, float]) -> str:
    """The winner on the rows that nothing was chosen by, beside its eval_loss; empty if none are.

    Proofs of older versions have no interval.
    """
    if "test_loss" not in proof:
        return ""
    text = f"Loss on the test split, which no decision has seen: {proof['test_loss']:.4f}"
    if "test_low" in proof:
        text += f", 95% interval {proof['test_low']:.4f} to {proof['test_high']:.4f} "
        text += f"(other rows like these {proof['test_rows']:,.0f})"
    elif "test_rows" in proof:
        text += f", of only {proof['test_rows']:,.0f} rows: no interval is given"
    if "base_test_loss" in proof:
        text += f"; base model {proof['base_test_loss']:.4f}"
    loss = found.report.metrics["eval_loss"]
    text += f". Its eval_loss of {loss:.4f} "
    many = history.config_count
    chosen = (
        f"is the best of {many:,} configs, " if many > 1 else "is the best of its evaluations, "
    )
    return f"{text}{chosen}which is optimistic."


def _data(spec: Spec) -> str:
    data = spec.train.data
    if data.source == "docstrings":
        return "docstrings of the Python standard library"
    if data.source == "hub":
        return str(data.path)
    paths = [data.path] if isinstance(data.path, str) else data.path or ()
    return ", ".join(path.rsplit("/", 1)[-1] for path in paths)
