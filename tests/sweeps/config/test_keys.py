"""What may be done with each config key: the facts at its field."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from sweeps.config.keys import FACTS, SETTABLE, may_change, may_grow, search_refusal, tracked_keys
from sweeps.config.setting import Facts, setting
from sweeps.config.spec import METRICS, Config, Metric

MAY_CHANGE = {
    *(
        "sweep.first",
        "sweep.trials",
        "sweep.finalists",
        "sweep.reuse",
        "sweep.learn_from",
        "sweep.keep",
        "sweep.device_hours",
        "sweep.time_budget_s",
        "sweep.max_concurrent",
    ),
    *("sweep.max_retries", "tracking", "cluster", "engine", "storage"),
}
# Those that say where a folder lies, and how the devices of a trial share its weights.
UNSAID = {"name", "run_dir", "accept_changes", "trainer.strategy"}
SEARCHED = {"peft", "trainer", "model.dtype", "model.quantization", "model.attn_implementation"}


def test_these_keys_may_change_on_a_begun_folder_and_no_others() -> None:
    assert {key for key, facts in FACTS.items() if facts.may_change} == MAY_CHANGE | UNSAID
    assert may_change("tracking.project")
    assert may_change("engine.something_new")
    assert not may_change("sweep.budget.examples")
    assert not may_change("trainer.optim")
    assert not may_change("sweep")
    assert not may_change("unheard.of")


def test_the_documentation_names_the_keys_that_may_change() -> None:
    text = (Path(__file__).parents[3] / "docs" / "run-folder.md").read_text()
    paragraph = text.partition("These keys may change on the same folder: ")[2].partition(". ")[0]
    assert set(re.findall(r"`([\w.]+)`", paragraph)) == MAY_CHANGE


def test_what_can_be_set_may_change_or_grow_on_a_folder_too_and_the_page_names_it() -> None:
    assert all(may_change(key) or may_grow(key) for key in SETTABLE)
    assert {key for key, facts in FACTS.items() if facts.may_grow} == {
        "sweep.space",
        "sweep.repeats",
    }
    text = (Path(__file__).parents[3] / "docs" / "steer.md").read_text()
    paragraph = text.partition("## Keys that `set` changes")[2].partition(". The other")[0]
    assert set(re.findall(r"`([\w.]+)`", paragraph)) == set(SETTABLE)


def test_these_keys_stay_on_the_machine() -> None:
    private = {
        "": {"name", "run_dir", "storage", "accept_changes", "model", "data"}
        | {"engine", "sweep", "tracking", "cluster"},
        "model": set(),
        "data": {"columns"},
        "sweep": {"reuse", "learn_from", "keep", "max_concurrent", "max_retries", "max_same_error"},
    }
    for section, names in private.items():
        head = f"{section}." if section else ""
        keys = {key.removeprefix(head) for key in FACTS if key.startswith(head)}
        assert {name for name in keys if "." not in name} - tracked_keys(section) == names
    assert not any(tracked_keys(section) for section in ("engine", "tracking", "cluster"))


def test_a_trial_may_vary_these_keys_and_no_others() -> None:
    assert {key for key, facts in FACTS.items() if facts.searched} == SEARCHED
    assert search_refusal("trainer.lr_scheduler_kwargs.num_decay_steps") == ""
    assert search_refusal("unheard.of") is None
    for key in FACTS:
        allowed = any(key == name or key.startswith(f"{name}.") for name in SEARCHED)
        assert bool(search_refusal(key)) == (not allowed or key == "trainer.strategy"), key


def test_a_key_without_facts_may_do_nothing() -> None:
    for key in ("data.columns", "sweep.max_same_error"):
        assert FACTS[key] == Facts()
        assert search_refusal(key)
        assert not may_change(key)
        assert key.partition(".")[2] not in tracked_keys(key.partition(".")[0])


def test_a_fact_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="traked"):
        setting(1, traked=True)


def test_every_section_says_whose_its_keys_are() -> None:
    assert not [each.name for each in dataclasses.fields(Config) if FACTS[each.name] == Facts()]


def test_every_metric_has_its_direction() -> None:
    assert set(METRICS) == set(get_args(Metric))
