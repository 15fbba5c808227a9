"""Read a search space, written in Hydra's sweep grammar, into dimensions, and check it.

Hydra's parser accepts reversed intervals, nan and doubled choices in silence, so all that is
checked here; every problem of a space is found in one pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException

from sweeps.core.errors import Problem, first_line
from sweeps.core.secrets import is_secret_key
from sweeps.space.conditions import ordered, read_conditions
from sweeps.space.grammar import GRAMMAR, foreign, parse, plain
from sweeps.space.space import Choice, Dimension, Interval, Space, set_by

_MOST_OPTIONS = 10_000
# Keys that take whole numbers only: an interval of theirs is one of whole numbers, though Hydra
# reads its ends as floats.
WHOLE_KEYS = frozenset(
    (
        "peft.r",
        "peft.qalora_group_size",
        "trainer.per_device_train_batch_size",
        "trainer.per_device_eval_batch_size",
        "trainer.gradient_accumulation_steps",
        "trainer.dataloader_num_workers",
        "trainer.torch_empty_cache_steps",
        "trainer.dataloader_prefetch_factor",
        "trainer.pad_to_multiple_of",
        "trainer.ddp_bucket_cap_mb",
        "trainer.ddp_timeout",
    )
)


def space_of(config: Mapping[str, Any], problems: list[Problem] | None = None) -> Space:
    """The space of a sweep's config, and the fixed keys that its conditions ask for.

    Args:
        problems: gets what is wrong with it; None for a config that was checked before.
    """
    sweep = config.get("sweep", {})
    parts = (sweep.get(name) for name in ("space", "when"))
    written, when = (part if isinstance(part, Mapping) else {} for part in parts)
    space = parse_space(written, when, [] if problems is None else problems)
    asked = {condition.key for condition in space.when.values()}
    return replace(space, fixed={key: lookup(config, key) for key in asked})


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def parse_space(
    space: Mapping[str, Any], when: Mapping[str, str], problems: list[Problem]
) -> Space:
    """Read `sweep.space` and `sweep.when`; what is wrong is added to `problems`."""
    dimensions: dict[str, Dimension] = {}
    for name, expression in space.items():
        dimension = _dimension(str(name), expression, problems)
        if dimension is not None:
            dimensions[str(name)] = dimension
    _check_owners(dimensions, problems)
    conditions = read_conditions(when, space, dimensions, problems)
    return Space(ordered(dimensions, conditions, problems), conditions)


def _dimension(name: str, expression: Any, problems: list[Problem]) -> Dimension | None:
    found: list[str] = []
    dimension: Dimension | None = None
    if is_secret_key(name):
        found.append("holds a secret, which is nothing to search.")
    else:
        dimension = _read(name, _parse(expression, found), found)
    key = f"sweep.space.{name}"
    problems.extend(Problem(key=key, value=expression, message=message) for message in found)
    return None if found else dimension


def _read(name: str, sweep: Any, found: list[str]) -> Dimension | None:
    if isinstance(sweep, list):
        return _choice(name, sweep, found)
    if isinstance(sweep, IntervalSweep):
        return _interval(name, sweep, found)
    if not isinstance(sweep, ChoiceSweep | RangeSweep):
        return None
    if sweep.tags:
        found.append("takes no tag; tags belong to an interval.")
    if sweep.shuffle:
        found.append("cannot be shuffled: a grid goes as it is written; or sweep.search=random.")
    if isinstance(sweep, ChoiceSweep):
        return _choice(name, list(sweep.list), found)
    return _range(name, sweep, found)


def _parse(expression: Any, found: list[str]) -> Any:
    """A list of options or one of Hydra's sweeps; None, and `found` longer, if it is neither."""
    if isinstance(expression, Sequence) and not isinstance(expression, str):
        return list(expression)
    if (ours := foreign(expression)) is not None:
        found.append(f"is written {ours} here.")
        return None
    try:
        value = parse(expression)
    except HydraException as error:
        reason = first_line(error)
        if "empty choice" in str(error):
            reason = "an empty choice has nothing to try"
        found.append(f"{reason}. Write {GRAMMAR}.")
        return None
    if isinstance(value, list | ChoiceSweep | IntervalSweep | RangeSweep):
        return value
    found.append(f"is one value, not something to search. Write {GRAMMAR}.")
    return None


def _choice(name: str, options: list[Any], found: list[str]) -> Choice | None:
    options = [plain(option) for option in options]
    if not options:
        found.append("an empty choice has nothing to try.")
        return None
    if len(options) > _MOST_OPTIONS:
        found.append(f"has {len(options)} values; more than {_MOST_OPTIONS} are not for a choice.")
        return None
    if not all(_is_finite(option) for option in options):
        found.append("nan and inf are no values to train with.")
        return None
    doubled = _doubled(options)
    if doubled:
        found.append(f"lists {', '.join(doubled)} twice; once is enough.")
    mappings = [option for option in options if isinstance(option, Mapping)]
    if mappings:
        found.extend(_mapping_faults(mappings, len(options)))
    return Choice(name=name, options=tuple(options))


def _mapping_faults(mappings: Sequence[Mapping[str, Any]], count: int) -> Iterable[str]:
    if len(mappings) < count:
        yield "mixes mappings and single values; use one or the other."
    elif len({frozenset(mapping) for mapping in mappings}) > 1:
        yield "every mapping of a choice must set the same keys."
    elif not mappings[0]:
        yield "a mapping of a choice must set some key."
    secrets = sorted({key for mapping in mappings for key in mapping if is_secret_key(key)})
    if secrets:
        yield f"sets {', '.join(secrets)}, a secret, which is nothing to search."


def _doubled(options: Sequence[Any]) -> list[str]:
    """The options that are listed more than once; 1, 1.0 and true are one value to Optuna."""
    seen: dict[Any, None] = {}
    doubled: dict[str, None] = {}
    for option in options:
        parts = isinstance(option, Mapping | list)
        text = json.dumps(option, sort_keys=True, default=str)
        value = ("parts", text) if parts else option
        if value in seen:
            doubled[text] = None
        seen[value] = None
    return sorted(doubled)


def _range(name: str, sweep: RangeSweep, found: list[str]) -> Choice | None:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    if not _is_finite([start, stop, step]) or step == 0:
        found.append("a range needs finite numbers and a step other than 0.")
        return None
    count = max(0, math.ceil(round((stop - start) / step, 9)))
    if count == 0:
        found.append(f"range({start}, {stop}, {step}) is empty; its end is left out.")
    elif count > _MOST_OPTIONS:
        found.append(f"has {count} values; write interval(...) for more than {_MOST_OPTIONS}.")
    if found:
        return None
    return Choice(name=name, options=tuple(_tidy(start + i * step) for i in range(count)))


def _tidy(number: float) -> float:
    """Round a range's value as a person would write it: 0.3 for 0.1 + 0.2."""
    return number if isinstance(number, int) else float(f"{number:.12g}")


def _interval(name: str, sweep: IntervalSweep, found: list[str]) -> Interval | None:
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    unknown = sorted(set(sweep.tags) - {"log", "int"})
    is_cast = isinstance(low, int) and isinstance(high, int)  # int(interval(...))
    integer = is_cast or "int" in sweep.tags or name in WHOLE_KEYS
    log = "log" in sweep.tags
    if unknown:
        found.append(f"knows the tags log and int, not {', '.join(unknown)}.")
    if not _is_finite([low, high]):
        found.append("an interval needs two finite numbers.")
    elif low >= high:
        found.append(f"low {low:g} must be below high {high:g}; swap them?")
    elif log and low <= 0:
        found.append(f"a log interval starts above 0, not at {low:g}.")
    elif integer and (low != int(low) or high != int(high)):
        found.append("an int interval needs whole bounds.")
    if found:
        return None
    cast = int if integer else float
    return Interval(name=name, low=cast(low), high=cast(high), log=log, integer=integer)


def _is_finite(option: Any) -> bool:
    """Whether no number in `option`, at any depth, is nan, inf or too large to be a float."""
    if isinstance(option, Mapping):
        return all(_is_finite(value) for value in option.values())
    if isinstance(option, list):
        return all(_is_finite(item) for item in option)
    try:
        return not isinstance(option, int | float) or math.isfinite(option)
    except OverflowError:
        return False


def _check_owners(dimensions: Mapping[str, Dimension], problems: list[Problem]) -> None:
    owner: dict[str, str] = {}
    for name, dimension in dimensions.items():
        for key in set_by(dimension):
            if key in owner:
                problems.append(
                    Problem(
                        key=f"sweep.space.{name}",
                        message=f"sets {key}, which {owner[key]} sets too; search it in one place.",
                    )
                )
            owner[key] = name
