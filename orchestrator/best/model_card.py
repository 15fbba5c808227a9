"""best/: the winner's folder, with a model card and what it takes to train it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sweeps.config.spec import SearchSpec, Spec
from sweeps.config.trial_config import SECTIONS, config_of
from sweeps.config.validation import without_strategy
from sweeps.core.commands import UnwritableError, command_line, override
from sweeps.core.naming import trial_name
from sweeps.core.secrets import masked
from sweeps.ledger.history import History
from sweeps.results.ranking import Best, Row, ranked
from sweeps.storage.durable_writes import publish, write_text
from sweeps.storage.run_folder import RunFolder

_TOP = 5
_NO_COMMAND = (
    "Its config has a key that cannot stand on a command line; all of it is in `trial.yaml`."
)


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
        "metric": history.metric,
        **{name: found.report.metrics[name] for name in (history.metric, "eval_loss")},
        "values": masked("", dict(found.record.values)),
        "proof": dict(proof),
        "again": again,
        "config": yaml.safe_load(folder.trial_config(found.record.key).read_text(encoding="utf-8")),
    }
    write_text(target / "README.md", card(spec, history, found, proof, again))
    write_text(target / "trial.yaml", yaml.safe_dump(facts, sort_keys=False))
    if not ready:
        publish(draft, folder.best, "best")


def train_again(spec: Spec, found: Best) -> str | None:
    """The one command that trains the winner again, alone; None if no command line can say it."""
    from orchestrator.config.compose import compose_config
    from orchestrator.config.overrides import groups

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
        if config["data"]["path"] is not None:  # some of the files leave it open
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
    except UnwritableError:
        return None
    return command_line(words)


def _differences(default: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Overrides that make the training sections of `config` out of those of `default`."""
    for section in SECTIONS:
        there, now = without_strategy(default[section]), config[section]
        for name, value in now.items():
            if name not in there or repr(there[name]) != repr(value):  # 1 is not 1.0 in a key
                yield override(f"{section}.{name}", value)
        yield from (f"~{section}.{name}" for name in there if name not in now)


def card(
    spec: Spec, history: History, found: Best, proof: Mapping[str, float], again: str | None
) -> str:
    """The model card, in the Hub's format."""
    from trainers.best_checkpoint import base_name

    base = base_name(spec.train.model)
    is_adapter = not spec.train.trains_base
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
    ranked_by = ""
    if history.metric != "eval_loss":
        value = found.report.metrics[history.metric]
        ranked_by = f"`{history.metric}` {value:.4f}{spread}, by which the trials were ranked. "
        spread = ""
    lines += [
        f"{ranked_by}`eval_loss` {loss:.4f} nats per labelled token{spread}{gained}. Measured "
        f"again from these files: {proof['eval_loss']:.4f} over {proof['eval_tokens']:,.0f} "
        "tokens.",
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
    lines += ["## Train it again", ""]
    lines += ["```sh", again, "```", ""] if again else [_NO_COMMAND, ""]
    return "\n".join(lines)


def _table(history: History) -> list[str]:
    rows: list[Row] = [row for row in ranked(history) if row.rank is not None][:_TOP]
    lines = [f"| rank | trial | what varies | {history.metric} | tokens/s | peak memory (MiB) |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""
        memory = f"{row.peak_memory_mb:,.0f}" if row.peak_memory_mb else ""
        name = trial_name(history.trials[row.key].values)
        lines.append(
            f"| {row.rank} | {row.number} | {name} | {row.value:.4f} | {speed} | {memory} |"
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
