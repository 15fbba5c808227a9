"""Generates command lines as people type them, each with the trials that were meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from support.plain_config import (
    Between,
    Options,
    Space,
    base_config,
    get_key,
    keys_of,
    set_key,
    space_of_file,
)

Draw = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class LineCase:
    """The words of a command line, and what has to come of them.

    Attributes:
        config: all keys, as meant.
        space: what is searched, as meant; `when`: its conditions.
        refused: a pattern of what the refusal names; "" if the words have to be accepted.
        hint: what is searched if the word that the refusal tells to type is typed.
        kind: for statistics.
    """

    words: tuple[str, ...]
    config: Mapping[str, Any]
    space: Space
    when: Mapping[str, tuple[str, Any]]
    kind: str
    refused: str = ""
    hint: Options | Between | None = None
    files: tuple[str, ...] = ()


# ---------------------------------------------------------------------- values

_RATES = st.sampled_from([1e-5, 3e-5, 2e-4, 1e-3, 0.0005, 0.01, 1.5e-4])
_SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0, 0.5])
_COUNTS = st.integers(1, 64)
_SMALL = st.sampled_from([1, 2, 4, 8, 16])
_BOOLS = st.booleans()
_MODULES = st.lists(
    st.sampled_from("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()),
    min_size=1,
    max_size=3,
    unique=True,
)
# Keys that a trial may have a value of its own of.
SEARCHED: dict[str, st.SearchStrategy[Any]] = {
    "trainer.learning_rate": _RATES,
    "trainer.weight_decay": _SHARES,
    "trainer.warmup_steps": st.sampled_from([0, 0.03, 0.1, 5, 0.5]),
    "trainer.max_grad_norm": st.sampled_from([0, 0.5, 1.0, 2]),
    "trainer.adam_beta1": st.sampled_from([0.9, 0.8, 0.5]),
    "trainer.adam_beta2": st.sampled_from([0.999, 0.95, 0.99]),
    "trainer.adam_epsilon": st.sampled_from([1e-8, 1e-6]),
    "trainer.per_device_train_batch_size": _SMALL,
    "trainer.gradient_accumulation_steps": _SMALL,
    "trainer.optim": st.sampled_from(["adamw_torch", "adafactor", "sgd", "adamw_8bit"]),
    "trainer.lr_scheduler_type": st.sampled_from(
        ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"]
    ),
    "trainer.neftune_noise_alpha": st.sampled_from([None, 5, 0.5]),
    "trainer.label_smoothing_factor": st.sampled_from([0.0, 0.1]),
    "peft.r": _SMALL,
    "peft.lora_alpha": st.sampled_from([8, 16, 32, 0.5]),
    "peft.lora_dropout": st.sampled_from([0.0, 0.05, 0.1]),
    "peft.use_rslora": _BOOLS,
    "peft.bias": st.sampled_from(["none", "all", "lora_only"]),
    "peft.target_modules": st.one_of(st.just("all-linear"), _MODULES),
    "peft.init_lora_weights": st.sampled_from([True, False, "gaussian"]),
    "model.attn_implementation": st.sampled_from(["auto", "eager", "sdpa"]),
}
_TEXT = st.sampled_from(
    [*("mine", "My sweep", "größe", "a=b", "x,y", "[v2]", "{a}", "it's", 'say "x"', "3", "1e-4"),
     *("true", "null", "off", "日本", "a: b", "50%", "$HOME", "a\\b", "x#y", "(a)", " a", "a\\"),
     *("nan", "0x10", "1_000", "~", "a|b", "'q'", "\\'", "a'b\"c", "+1", "@x", "-", "?", "")]
)  # fmt: skip
# Keys that are the same for all trials.
FIXED: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 10**6),
    "data.limit": st.integers(1, 5000),
    "data.eval_fraction": st.sampled_from([0.1, 0.5, 0.05]),
    "data.eval_limit": st.sampled_from([None, 1, 100]),
    "data.shared_prompts": st.sampled_from([None, "move", "drop"]),
    "data.test_fraction": st.sampled_from([0.0, 0.1, 0]),
    "data.max_length": st.sampled_from([16, 128, 512]),
    "data.max_truncated": st.sampled_from([0, 0.5, 1.0]),
    "data.on_bad_row": st.sampled_from(["skip", "error"]),
    "model.revision": st.one_of(st.none(), _TEXT),
    "trainer.logging_steps": st.sampled_from([1, 10, 0.5]),
    "trainer.logging_first_step": _BOOLS,
    "trainer.gradient_checkpointing": _BOOLS,
    "trainer.per_device_eval_batch_size": _COUNTS,
    "trainer.completion_only_loss": st.sampled_from([None, True, False]),
    "sweep.repeats": st.integers(1, 5),
    "sweep.keep": st.integers(1, 5),
    "sweep.evaluations": st.integers(1, 16),
    "sweep.budget.examples": st.integers(64, 5000),
    "sweep.budget.epochs": st.sampled_from([1, 0.5, 3]),
    "sweep.max_concurrent": st.sampled_from([None, 1, 4]),
    "sweep.max_retries": st.integers(0, 3),
    "tracking.project": _TEXT,
    "tracking.entity": st.one_of(st.none(), _TEXT),
    "tracking.tags": st.lists(_TEXT, max_size=3),
    "engine.lanes": st.sampled_from(["auto", 1, 4]),
    "engine.cpus_per_trial": st.sampled_from([1, 2, 0.5]),
    "peft.rank_pattern": st.sampled_from([{}, {"q_proj": 4}, {"q_proj": 4, "v_proj": 2}]),
    "peft.modules_to_save": st.sampled_from([None, ["lm_head"]]),
}
_BOOLEAN_KEYS = (
    *("peft.use_rslora", "trainer.gradient_checkpointing", "trainer.logging_first_step"),
    *("accept_changes", "model.trust_remote_code", "peft.use_dora"),
)
_NO_BOOLEANS = ("yes", "no", "on", "off", "Yes", "NO", "On", "'true'", "1", "0", "y", "n", "t")
_NUMBER_KEYS = (
    *("trainer.learning_rate", "trainer.weight_decay", "trainer.per_device_train_batch_size"),
    *("peft.r", "peft.lora_dropout", "seed", "data.limit", "sweep.trials", "sweep.repeats"),
    *("trainer.gradient_accumulation_steps", "data.max_length", "trainer.max_grad_norm"),
)
_NO_NUMBERS = (
    "ten",
    "'8'",
    "nan",
    "-1",
    "inf",
    "true",
    "{a: 1}",
    "1e-",
    "8x",
    "0x10",
    "1,5e",
    "-0.5",
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL = {"null", "true", "false", "nan", "inf"}


def typed(draw: Draw, value: Any) -> str:
    """A value as one may type it."""
    if value is None:
        return str(draw(st.sampled_from(["null", "null", "NULL"])))
    if isinstance(value, bool):
        word = str(value)
        return str(draw(st.sampled_from([word.lower(), word.lower(), word, word.upper()])))
    if isinstance(value, int):
        return str(draw(st.sampled_from([str(value), str(value), f"+{value}"])))
    if isinstance(value, float):
        forms = [repr(value), f"{value:e}", f"{value:.8f}", f"{value:E}"]
        forms = [each for each in forms if float(each) == value]
        return str(draw(st.sampled_from([forms[0], *forms])))
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _SPECIAL and draw(st.booleans()):
            return value
        return _quoted(draw, value)
    blank = draw(st.sampled_from(["", " "]))
    if isinstance(value, dict):
        pairs = [f"{key}:{blank}{typed(draw, each)}" for key, each in value.items()]
        return "{" + f",{blank}".join(pairs) + "}"
    return "[" + f",{blank}".join(typed(draw, each) for each in value) + "]"


def _quoted(draw: Draw, text: str) -> str:
    """In quotes of Hydra's: backslashes count before a quote only."""
    quote = draw(st.sampled_from(["'", '"']))
    escaped = re.sub(
        rf"(\\*)({quote}|\Z)", lambda f: f[1] * 2 + (f"\\{quote}" if f[2] else ""), text
    )
    return f"{quote}{escaped}{quote}"


def _search(
    draw: Draw, key: str, values: st.SearchStrategy[Any], *, commas: bool = True
) -> tuple[str, Options | Between]:
    """A search of a key as one may type it, and what it means."""
    forms = ["choice", "choice", "commas", "range", "interval", "log", "int"]
    form = draw(st.sampled_from([each for each in forms if commas or each != "commas"]))
    if form == "range" and key in ("peft.r", "trainer.gradient_accumulation_steps"):
        low, count, step = draw(_SMALL), draw(st.integers(2, 4)), draw(st.integers(1, 4))
        options = tuple(low + i * step for i in range(count))
        return f"range({low},{low + count * step},{step})", Options(options)
    if form in ("interval", "log") and key in ("trainer.learning_rate", "trainer.weight_decay"):
        low, high = sorted(draw(st.lists(_RATES, min_size=2, max_size=2, unique=True)))
        text = f"interval({typed(draw, low)},{typed(draw, high)})"
        if form == "log":
            return f"tag(log,{text})", Between(low, high, log=True)
        return text, Between(low, high)
    if form in ("int", "interval") and key in ("peft.r", "trainer.per_device_train_batch_size"):
        low, high = sorted(draw(st.lists(_SMALL, min_size=2, max_size=2, unique=True)))
        text = f"interval({low},{high})"
        return (f"tag(int,{text})" if form == "int" else text), Between(low, high, whole=True)
    if key == "trainer.neftune_noise_alpha" and form != "commas":  # Hydra's choice takes no null
        values = st.sampled_from([5, 0.5])
    options = draw(st.lists(values, min_size=2, max_size=4, unique_by=repr))
    if len({repr(float(o)) if isinstance(o, int | float) else repr(o) for o in options}) < len(
        options
    ):
        options = options[:1]  # 0 and 0.0 are one value
    if len(options) == 1 or form != "commas":
        blank = draw(st.sampled_from(["", " "]))
        inner = f",{blank}".join(typed(draw, each) for each in options)
        return f"choice({inner})", Options(tuple(options))
    return ",".join(typed(draw, each) for each in options), Options(tuple(options))


# ---------------------------------------------------------------------- lines


@dataclass
class _Line:
    """A line while it is put together."""

    words: list[str]
    config: dict[str, Any]
    space: Space
    when: dict[str, tuple[str, Any]]
    taken: set[str] = field(default_factory=set)
    forced: set[str] = field(default_factory=set)
    refused: str = ""


_SWEEPS = ("lr_grid", "lr_grid", "joint", "base", "accumulation", "optimizer", "scheduler", "asha")


def _begin(draw: Draw, peft: str) -> _Line:
    sweep = draw(st.sampled_from(_SWEEPS))
    words = [f"sweep={sweep}"]
    groups = {"peft": peft}
    if peft != "lora":
        words.append(f"peft={peft}")
    for group, choices in (("tracking", ["off", "offline"]), ("engine", ["solo"])):
        if draw(st.integers(0, 3)) == 3:
            groups[group] = draw(st.sampled_from(choices))
            words.append(f"{group}={groups[group]}")
    config = base_config(sweep, **groups)
    when = {}
    for key, text in config["sweep"]["when"].items():
        asked, _, value = text.partition("=")
        when[key] = (asked, value)
    space = space_of_file(config)
    if peft == "full":
        space = {name: each for name, each in space.items() if not name.startswith("peft.")}
    return _Line(words, config, space, when)


def _fix(draw: Draw, line: _Line, key: str, value: Any) -> None:
    """Set a key for all trials: it is searched no longer; of linked rows those stay that fit."""
    sign = draw(st.sampled_from(["", "", "", "+", "++"])) if key.split(".")[0] != "data" else ""
    line.words.append(f"{sign}{key}={typed(draw, value)}")
    line.taken.add(key)
    line.forced |= {key} if sign == "++" else set()
    set_key(line.config, key, value)
    if _wandb_refuses(key, value) and line.config["tracking"]["mode"] != "off":
        _refuse(line, re.escape(key))
    other = {"sweep.budget.examples": "epochs", "sweep.budget.epochs": "examples"}.get(key)
    if other:
        line.config["sweep"]["budget"][other] = None
        line.taken.add(f"sweep.budget.{other}")
    for name, dimension in list(line.space.items()):
        keys = keys_of(name, dimension)
        if key not in keys:
            continue
        if keys == (name,):
            del line.space[name]
            line.when.pop(name, None)
            continue
        assert isinstance(dimension, Options)
        rows = tuple(row for row in dimension.values if row[key] == value)
        if rows:
            line.space[name] = Options(rows)
        else:
            line.refused = re.escape(key)


def _wandb_refuses(key: str, value: Any) -> bool:
    """Whether it is a name that W&B takes of no project or tag."""
    if key == "tracking.project":
        return not value or any(letter in value for letter in "/\\#?%:")
    return key == "tracking.tags" and "" in value


def _replace_space(draw: Draw, line: _Line) -> None:
    """A space of one's own in the place of the file's, perhaps with keys that are set together."""
    line.space.clear()
    parts = []
    if draw(st.booleans()):
        keys = draw(
            st.lists(st.sampled_from(sorted(SEARCHED)), min_size=2, max_size=3, unique=True)
        )
        rows = draw(
            st.lists(
                st.fixed_dictionaries({key: SEARCHED[key] for key in keys}),
                min_size=1,
                max_size=3,
                unique_by=repr,
            )
        )
        if len({_plainly(row) for row in rows}) < len(rows):
            rows = rows[:1]  # 0 and 0.0 are one value
        parts.append(f"linked: choice({', '.join(typed(draw, row) for row in rows)})")
        line.space["linked"] = Options(tuple(rows))
        line.taken.update(keys)
    for key in draw(st.lists(st.sampled_from(sorted(SEARCHED)), max_size=2, unique=True)):
        if key not in line.taken:
            text, line.space[key] = _search(draw, key, SEARCHED[key], commas=False)
            parts.append(f"{key}: {text}")
            line.taken.add(key)
    line.words.append("sweep.space={" + ", ".join(parts) + "}")


def _plainly(row: Mapping[str, Any]) -> str:
    values = (row[key] for key in sorted(row))
    return repr([float(v) if isinstance(v, int | float) else v for v in values])


def _search_key(draw: Draw, line: _Line, key: str) -> None:
    text, dimension = _search(draw, key, SEARCHED[key])
    line.words.append(f"{draw(st.sampled_from(['', '', 'sweep.space.']))}{key}={text}")
    line.taken.add(key)
    if any(key in keys_of(name, each) and name != key for name, each in line.space.items()):
        line.refused = re.escape(key)  # the file's linked rows set it as well
    line.space[key] = dimension


def _settled(draw: Draw, line: _Line) -> None:
    """A search that suits the space, and conditions on what is not searched any more."""
    for name, (asked, wanted) in list(line.when.items()):
        if name not in line.space:
            del line.when[name]
        elif wanted not in (_searched(line, asked) or [get_key(line.config, asked)]):
            if name in line.taken:
                line.refused = re.escape(name)
            else:
                del line.space[name]
            del line.when[name]
    _settle_unread(line)
    _settle_pruner(line)
    is_counted = all(isinstance(each, Options) for each in line.space.values())
    if not is_counted or draw(st.integers(0, 4)) == 4:
        search = draw(st.sampled_from(["random", "tpe"]))
        trials = draw(st.integers(2, 20))
        line.words.append(f"sweep.search={search}")
        if not any(word.startswith("sweep.trials=") for word in line.words):  # one that is broken
            line.words.append(f"sweep.trials={trials}")
        line.config["sweep"] |= {"search": search, "trials": trials, "search_options": {}}


_ADAM = ("trainer.adam_beta1", "trainer.adam_beta2", "trainer.adam_epsilon")


def _settle_unread(line: _Line) -> None:
    """What is typed and would be read by no trial is refused."""
    typed_keys = line.taken - line.forced
    if typed_keys.intersection(_ADAM) and not any(
        str(optim).startswith("adamw") for optim in _values(line, "trainer.optim")
    ):
        _refuse(line, "|".join(re.escape(key) for key in _ADAM if key in typed_keys))
    if "data.eval_fraction" in typed_keys and line.config["data"]["eval_path"]:
        _refuse(line, re.escape("data.eval_fraction"))
    key = "trainer.warmup_steps"
    if _searched(line, key) and set(_values(line, "trainer.lr_scheduler_type")) == {"constant"}:
        _refuse(line, re.escape(key))


def _settle_pruner(line: _Line) -> None:
    """A pruner that cannot stop a trial before its last evaluation is refused."""
    sweep = line.config["sweep"]
    first = sweep["pruner_options"].get("min_resource", 1)
    if sweep["pruner"] != "none" and sweep["evaluations"] <= first:
        _refuse(line, r"sweep\.pruner")


def _values(line: _Line, key: str) -> list[Any]:
    """What a key may be in some trial; the base value too, if the space may leave it so."""
    setting = [name for name, each in line.space.items() if key in keys_of(name, each)]
    is_always_set = any(name not in line.when for name in setting)
    return [*([] if is_always_set else [get_key(line.config, key)]), *_searched(line, key)]


def _searched(line: _Line, key: str) -> list[Any]:
    found = []
    for name, dimension in line.space.items():
        if isinstance(dimension, Options) and key in keys_of(name, dimension):
            linked = name != key
            found += [each[key] if linked else each for each in dimension.values]
    return found


def _refuse(line: _Line, pattern: str) -> None:
    """One fault may hide another."""
    line.refused = f"{line.refused}|{pattern}" if line.refused else pattern


_FILE_NAMES = [
    *("train.jsonl", "my file.jsonl", "größe.jsonl", "数据.jsonl", "a=b.jsonl", "a[1].jsonl"),
    *("a(1).jsonl", "a,b.jsonl", "{a}.jsonl", "it's.jsonl", 'x "y".jsonl', "a#b.jsonl", "a&b.json"),
    *(
        "-a.jsonl",
        "a:b.jsonl",
        "a;b.csv",
        "50%.csv",
        "a'b\"c.csv",
        "a\\b.csv",
        "1.jsonl",
        "null.csv",
    ),
    *(
        "a+b.jsonl",
        "$x.jsonl",
        "x{1,2}.jsonl",
        "choice(a,b).jsonl",
        "a\tb.jsonl",
        "@a.jsonl",
        "!.csv",
    ),
    *(
        "sub folder/a b.jsonl",
        "./x.jsonl",
        "../x.jsonl",
        "*.jsonl",
        "part-*.jsonl",
        "a?b.csv",
        "é.csv",
    ),
    *(
        "1e-4",
        "true.json",
        "a=b=c.jsonl",
        "[x].csv",
        "(x).csv",
        "a, b.csv",
        "x=[1].csv",
        "data.path=a",
    ),
]


def _name_path(draw: Draw, line: _Line) -> str:
    name = str(draw(st.sampled_from(_FILE_NAMES)))
    key = draw(st.sampled_from(["data.path", "data.path", "data.eval_path", "run_dir"]))
    line.taken |= {"data.path", "data.eval_path", "run_dir"}
    if key == "run_dir":
        if ".." in name or "\t" in name:
            name = "out put=1"
    else:
        line.words.append("data=file")
        line.config["data"] = base_config("base", data="file")["data"]
        line.config["data"]["max_length"] = 512  # the default is lowered to the model's
        if key == "data.eval_path":
            line.words.append("data.path=train.jsonl")
            set_key(line.config, "data.path", "train.jsonl")
    line.words.append(f"{key}={name}")
    set_key(line.config, key, name)
    return name


def _base_line(draw: Draw, peft: str = "lora") -> tuple[_Line, tuple[str, ...]]:
    line = _begin(draw, peft)
    files: tuple[str, ...] = ()
    if draw(st.integers(0, 3)) == 3:
        files = (_name_path(draw, line),)
    if peft == "lora" and draw(st.integers(0, 5)) == 5:
        _replace_space(draw, line)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*SEARCHED, *SEARCHED, *FIXED]))
        if key in line.taken or (peft == "full" and key.startswith("peft.")):
            continue
        if key in SEARCHED and draw(st.booleans()):
            _search_key(draw, line, key)
        else:
            _fix(draw, line, key, draw(SEARCHED.get(key, FIXED.get(key))))
    return line, files


@st.composite
def line_cases(draw: Draw) -> LineCase:
    """Draw a command line."""
    kind = draw(st.sampled_from(["valid"] * 12 + list(_BROKEN)))
    peft = "full" if kind == "valid" and draw(st.integers(0, 9)) == 9 else "lora"
    line, files = _base_line(draw, peft)
    hint = None
    if kind != "valid":
        before = line.refused
        hint = _BROKEN[kind](draw, line)
        if before and line.refused:  # one of the two may hide the other
            line.refused, hint = f"{before}|{line.refused}", None
    before = line.refused
    _settled(draw, line)
    if line.refused != before:  # what is typed for the first fault does not mend the other
        hint = None
    if line.refused and kind == "valid":
        kind = "linked"
    return LineCase(
        words=tuple(line.words),
        config=line.config,
        space=_conditions_first(line),
        when=line.when,
        kind=kind,
        refused=line.refused,
        hint=hint,
        files=files,
    )


def _conditions_first(line: _Line) -> Space:
    """The space with each key of a condition before what depends on it."""
    found: Space = {}
    for name, dimension in line.space.items():
        asked = line.when[name][0] if name in line.when else name
        if asked in line.space:
            found.setdefault(asked, line.space[asked])
        found.setdefault(name, dimension)
    return found


# ---------------------------------------------------------------------- faults


def _misspelt(draw: Draw, line: _Line) -> None:
    key = draw(st.sampled_from([*SEARCHED, *FIXED]))
    section, _, name = key.rpartition(".")
    at = draw(st.integers(0, len(name) - 1))
    wrong = draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + "s"])
    )
    if not wrong or any(each.startswith(f"{section}.{wrong}") for each in (*SEARCHED, *FIXED)):
        wrong = f"{name}_x"
    whole = f"{section}.{wrong}".lstrip(".")
    line.words.append(
        f"{whole}={draw(st.sampled_from(['1', 'true', 'abc', '1,2', 'choice(1,2)']))}"
    )
    line.refused = re.escape(whole)


def _no_boolean(draw: Draw, line: _Line) -> None:
    key = draw(st.sampled_from(_BOOLEAN_KEYS))
    line.words = [word for word in line.words if not word.lstrip("+").startswith(f"{key}=")]
    line.words.append(f"{key}={draw(st.sampled_from(_NO_BOOLEANS))}")
    line.refused = re.escape(key)


def _no_number(draw: Draw, line: _Line) -> None:
    key = draw(st.sampled_from(_NUMBER_KEYS))
    line.words = [word for word in line.words if not word.lstrip("+").startswith(f"{key}=")]
    line.words.append(f"{key}={draw(st.sampled_from(_NO_NUMBERS))}")
    line.refused = re.escape(key)


_FOREIGN: list[tuple[str, Options | Between]] = [
    ("loguniform(1e-5, 1e-2)", Between(1e-5, 1e-2, log=True)),
    ("loguniform(1e-5,1e-2)", Between(1e-5, 1e-2, log=True)),
    ("tune.loguniform(1e-5, 1e-2)", Between(1e-5, 1e-2, log=True)),
    ("log_uniform_values(1e-5, 1e-2)", Between(1e-5, 1e-2, log=True)),
    ("uniform(0.0001, 0.01)", Between(0.0001, 0.01)),
    ("tune.uniform(1e-4, 1e-2)", Between(1e-4, 1e-2)),
    ("tune.choice([1e-4, 1e-3])", Options((1e-4, 1e-3))),
    ("grid_search([1e-4, 1e-3])", Options((1e-4, 1e-3))),
    ("tune.grid_search([1e-4,1e-3])", Options((1e-4, 1e-3))),
    ("[1e-4, 1e-3]", Options((1e-4, 1e-3))),
    ("[1e-4,1e-3,1e-2]", Options((1e-4, 1e-3, 1e-2))),
    ("{values: [1e-4, 1e-3]}", Options((1e-4, 1e-3))),
    ("{min: 1e-5, max: 1e-2}", Between(1e-5, 1e-2)),
    ("{distribution: log_uniform_values, min: 1e-5, max: 1e-2}", Between(1e-5, 1e-2, log=True)),
    ("{min: 1e-5, max: 1e-2, distribution: uniform}", Between(1e-5, 1e-2)),
]


def _foreign_value(draw: Draw, line: _Line) -> Options | Between | None:
    key = "trainer.learning_rate"
    line.words = [word for word in line.words if key not in word]
    line.space.pop(key, None)
    text, hint = draw(st.sampled_from(_FOREIGN))
    line.words.append(f"{key}={text}")
    line.refused = re.escape(key)
    return None if "sweep=optimizer" in line.words else hint  # its linked rows set the rate


_FOREIGN_KEYS = [
    ("num_train_epochs=3", r"sweep\.budget\.epochs"),
    ("trainer.num_train_epochs=3", r"sweep\.budget\.epochs"),
    ("epochs=3", r"sweep\.budget\.epochs"),
    ("max_steps=100", r"sweep\.budget\.examples"),
    ("trainer.max_steps=100", r"sweep\.budget\.examples"),
    ("max_seq_length=512", r"data\.max_length"),
    ("trainer.max_seq_length=512", r"data\.max_length"),
    ("trainer.max_length=512", r"data\.max_length"),
    ("lr=1e-4", r"trainer\.learning_rate"),
    ("learning_rate=1e-4", r"trainer\.learning_rate"),
    ("trainer.lr=1e-4", r"trainer\.learning_rate"),
    ("batch_size=8", r"trainer\.per_device_train_batch_size"),
    ("lora_r=8", r"peft\.r"),
    ("peft.rank=8", r"peft\.r"),
    ("lora_alpha=16", r"peft\.lora_alpha"),
    ("trainer.seed=1", "seed"),
    ("trainer.output_dir=out", "run_dir"),
    ("output_dir=out", "run_dir"),
    ("model_name_or_path=gpt2", r"model\.path"),
    ("sweep.n_trials=10", r"sweep\.(n_)?trials"),
    ("num_samples=10", r"sweep\.trials"),
    ("trainer.warmup_ratio=0.1", r"trainer\.warmup_steps"),
    ("trainer.fp16=true", r"model\.dtype"),
    ("trainer.report_to=wandb", "tracking"),
    ("trainer.eval_steps=10", r"sweep\.evaluations"),
    ("trainer.packing=true", r"trainer\.packing"),
    ("sweep.budget.epochs=1,2", r"sweep\.budget"),
    ("data.limit=10,20", r"data\.limit"),
    ("seed=1,2,3", r"sweep\.repeats"),
    ("model=tiny,qwen3_0_6b", "model"),
    ("sweep=lr_gird", "lr_grid"),
    ("peft=loar", "lora"),
    ("data.path=train.jsonl", r"data\.path"),
    ("data.columns={prompt: q}", r"data\.columns"),
    ("--multirun", "multirun"),
    ("-m", "multirun"),
    ("--lr=3", "lr"),
    ("trainer.learning_rate", "trainer.learning_rate"),
    ("trainer.learning_rate 1e-4", "trainer.learning_rate"),
    ("trainer.learning_rate=", "trainer.learning_rate"),
    ("trainer.optim=adamw", r"trainer\.optim"),
    ("trainer.lr_scheduler_type=cosin", r"trainer\.lr_scheduler_type"),
    ("peft.method=dora", r"peft\.method"),
    ("model.dtype=fp32", r"model\.dtype"),
    ("trainer.learning_rate=choice(1e-4,1e-4)", r"trainer\.learning_rate"),
    ("trainer.learning_rate=interval(1e-2,1e-4)", r"trainer\.learning_rate"),
    ("trainer.learning_rate=tag(log,interval(0,1))", r"trainer\.learning_rate"),
    ("trainer.learning_rate=choice()", r"trainer\.learning_rate"),
    ("trainer.learning_rate=choice(1e-4", r"trainer\.learning_rate"),
    ("trainer.learning_rate=[1e-4", r"trainer\.learning_rate"),
    ("peft.r=choice(4,8.5)", r"peft\.r"),
    ("peft.r=interval(0,8)", r"peft\.r"),
    ("sweep.space=[1,2]", r"sweep\.space"),
    ("sweep.space.peft.r=8", r"sweep\.space\.peft\.r"),
    ("sweep.space.trainer.nope=choice(1,2)", r"trainer\.nope"),
    ("name=a/b", "name"),
    ("run_dir=../x", "run_dir"),
]


def _foreign_key(draw: Draw, line: _Line) -> None:
    word, named = draw(st.sampled_from(_FOREIGN_KEYS))
    key = word.partition("=")[0]
    if word.startswith("data.") and "data=file" in line.words:
        return
    line.words = [each for each in line.words if not each.lstrip("+").startswith(f"{key}=")]
    line.words.append(word)
    line.refused = named


def _full(draw: Draw, line: _Line) -> None:
    """A key of the adapter, where none is trained."""
    key = draw(st.sampled_from(["peft.r", "peft.lora_alpha", "peft.target_modules"]))
    line.words = [each for each in line.words if "peft." not in each]
    line.words += ["peft=full", f"{key}={draw(st.sampled_from(['8', '4,8']))}"]
    line.refused = re.escape(key)


def _twice(draw: Draw, line: _Line) -> None:
    """A key with a value, and to be searched as well."""
    key = draw(st.sampled_from(["peft.lora_alpha", "trainer.max_grad_norm", "trainer.adam_beta1"]))
    line.words = [each for each in line.words if f"{key}=" not in each]
    line.words += draw(st.permutations([f"{key}=0.5", f"{key}=0.25,0.5"]))
    line.refused = re.escape(key)


_BROKEN: dict[str, Callable[..., Any]] = {
    "misspelt": _misspelt,
    "boolean": _no_boolean,
    "number": _no_number,
    "foreign value": _foreign_value,
    "foreign key": _foreign_key,
    "full": _full,
    "twice": _twice,
}
