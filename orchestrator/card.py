"""best/: the winner's folder, with a model card and what it takes to train it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sweeps.files import RunFolder, publish, write_text
from sweeps.history import History
from sweeps.naming import trial_name
from sweeps.ranking import Best, Row, ranked
from sweeps.secrets import masked
from sweeps.spec import Spec

_TOP = 5


def proof_of(folder: RunFolder) -> dict[str, Any] | None:
    """What best/trial.yaml says, or None where there is no best/ yet, or none that can be read."""
    try:
        data = yaml.safe_load((folder.best / "trial.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # it is proven again
    is_ours = isinstance(data, dict) and {"trial", "number", "step", "eval_loss"} <= data.keys()
    return data if is_ours and isinstance(data.get("proof"), dict) else None


def is_ready(folder: RunFolder, found: Best | None) -> bool:
    """Whether best/ holds the best checkpoint; also where there is none to hold."""
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
    argv: Sequence[str],
) -> None:
    """Finish the folder that a worker put together and proved, and give it the name best/."""
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
        "eval_loss": found.report.metrics["eval_loss"],
        "values": masked("", dict(found.record.values)),
        "proof": dict(proof),
        "again": again,
        "config": yaml.safe_load(folder.trial_config(found.record.key).read_text(encoding="utf-8")),
    }
    write_text(target / "README.md", card(spec, history, found, proof, again))
    write_text(target / "trial.yaml", yaml.safe_dump(facts, sort_keys=False))
    if not ready:
        publish(draft, folder.best, "best")


def train_again(spec: Spec, found: Best) -> str:
    """The one command that trains the winner again, alone."""
    from orchestrator.preparation import command_line

    words = ["sweep=base", f"run_dir={spec.run_dir}-again"]
    words += [f"{key}={_override(value)}" for key, value in _overrides(spec, found).items()]
    return command_line(words)


def _overrides(spec: Spec, found: Best) -> dict[str, Any]:
    """What the winner's training config says differently from the shipped defaults."""
    from orchestrator.compose import compose_config, flatten
    from sweeps.resolve import SECTIONS

    plain, _, _, _ = compose_config(["sweep=base"])
    default = dict(flatten({name: plain[name] for name in SECTIONS}))
    from sweeps.resolve import trial_config

    budget = {"examples": spec.sweep.budget.examples, "epochs": spec.sweep.budget.epochs}
    config = trial_config(
        spec.base,
        found.record.values,
        seed=found.record.seed,
        budget=budget,
        evaluations=spec.sweep.evaluations,
    )
    now = dict(flatten({name: config[name] for name in SECTIONS}))
    changed = {key: value for key, value in now.items() if default.get(key, ...) != value}
    changed["seed"] = found.record.seed
    kind = "examples" if budget["examples"] is not None else "epochs"
    changed[f"sweep.budget.{kind}"] = budget[kind]
    changed["sweep.evaluations"] = spec.sweep.evaluations
    return changed


def _override(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_override(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_override(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not value.replace("_", "").replace("-", "").isalnum():
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    return str(value)


def card(spec: Spec, history: History, found: Best, proof: Mapping[str, float], again: str) -> str:
    """The model card, in the Hub's format."""
    from trainers.export import base_name

    base = base_name(spec.train.model)
    is_adapter = spec.train.peft.get("method") != "full"
    base_loss = history.base.metrics["eval_loss"] if history.base else None
    loss = found.report.metrics["eval_loss"]
    lines = [
        "---",
        f"base_model: {spec.train.model.path if '/' in spec.train.model.path else base}",
    ]
    lines += ["library_name: peft"] if is_adapter else ["library_name: transformers"]
    lines += ["tags:", "- sft", *(["- lora"] if is_adapter else []), "---", ""]
    lines += [f"# {base}, fine-tuned: the best of sweep {spec.name}", ""]
    spread = (
        f" (mean of its seeds {found.mean:.4f}, spread {found.spread:.4f})" if found.spread else ""
    )
    gained = f"; the base model has {base_loss:.4f}" if base_loss is not None else ""
    lines += [
        f"`eval_loss` {loss:.4f} nats per labelled token{spread}{gained}. Measured again from "
        f"these files: {proof['eval_loss']:.4f} over {proof['eval_tokens']:,.0f} tokens.",
    ]
    if "test_loss" in proof:
        lines += [
            "",
            f"On the test split, which nothing was chosen by: {proof['test_loss']:.4f}; "
            f"the base model has {proof['base_test_loss']:.4f}.",
        ]
    lines += ["", "| | |", "| --- | --- |", f"| base model | {base} |", f"| data | {_data(spec)} |"]
    lines += (
        [f"| budget | {found.record.latest.examples:,} examples |"] if found.record.latest else []
    )
    lines += [f"| checkpoint | step {found.report.step}, {found.report.examples:,} examples seen |"]
    lines += [f"| `{key}` | {value} |" for key, value in found.record.values.items()]
    lines += ["", "## How it compares", "", *_table(history), ""]
    lines += ["## Load it", "", "```python", *_loading(spec, is_adapter), "```", ""]
    lines += ["## Train it again", "", "```sh", again, "```", ""]
    return "\n".join(lines)


def _table(history: History) -> list[str]:
    rows: list[Row] = [row for row in ranked(history) if row.rank is not None][:_TOP]
    lines = ["| rank | trial | what varies | eval_loss | tokens/s | peak memory (MiB) |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""
        memory = f"{row.peak_memory_mb:,.0f}" if row.peak_memory_mb else ""
        name = trial_name(history.trials[row.key].values)
        lines.append(
            f"| {row.rank} | {row.number} | {name} | {row.eval_loss:.4f} | {speed} | {memory} |"
        )
    return lines


def _data(spec: Spec) -> str:
    data = spec.train.data
    if data.source == "docstrings":
        return "docstrings of the Python standard library"
    path = str(data.path)
    return path if data.source == "hub" else path.rsplit("/", 1)[-1]


def _loading(spec: Spec, is_adapter: bool) -> list[str]:
    if not is_adapter:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained("best")',
            'tokenizer = AutoTokenizer.from_pretrained("best")',
        ]
    return [
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        'model = AutoPeftModelForCausalLM.from_pretrained("best")',
        'tokenizer = AutoTokenizer.from_pretrained("best")',
    ]
