"""The search space: what can be written, in what order it is walked, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.core.errors import Problem
from sweeps.space.grammar import foreign
from sweeps.space.parser import parse_space
from sweeps.space.space import Choice, Interval, Space, set_by

BATCH = "trainer.per_device_train_batch_size"
ACCUMULATION = "trainer.gradient_accumulation_steps"


def parse(space: Mapping[str, Any], when: Mapping[str, str] | None = None) -> Space:
    problems: list[Problem] = []
    parsed = parse_space(space, when or {}, problems)
    assert not problems, problems
    return parsed


def refused(space: Mapping[str, Any], when: Mapping[str, str] | None = None) -> list[str]:
    problems: list[Problem] = []
    parse_space(space, when or {}, problems)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("expression", "options"),
    [
        ("choice(a, b)", ("a", "b")),
        ("a,b", ("a", "b")),
        ("choice(only)", ("only",)),
        ("choice(1e-4, 3, true, 'x y')", (1e-4, 3, True, "x y")),
        ('choice("1", 1)', ("1", 1)),
        ("choice([q_proj, v_proj], [q_proj])", (["q_proj", "v_proj"], ["q_proj"])),
        (["a", None, 2], ("a", None, 2)),
        ("[4, 8]", (4, 8)),
        ("range(1, 9, 2)", (1, 3, 5, 7)),
        ("range(3)", (0, 1, 2)),
        ("range(5, 1, -2)", (5, 3)),
        ("range(0.1, 0.5, 0.1)", (0.1, 0.2, 0.3, 0.4)),
        ("int(choice(1.0, 2.0))", (1, 2)),
        ("sort(3, 1, 2)", (1, 2, 3)),
    ],
)
def test_choices_lists_and_ranges(expression: Any, options: tuple[Any, ...]) -> None:
    (dimension,) = parse({"peft.r": expression}).dimensions
    assert dimension == Choice(name="peft.r", options=options)
    assert [type(option) for option in dimension.options] == [type(option) for option in options]


STEPS = Choice(name="peft.r", options=(4, 8, 12, 16))
RATES = Interval(name="trainer.learning_rate", low=1e-5, high=1e-2, log=True)


@pytest.mark.parametrize(
    ("theirs", "meant"),
    [
        ("q_uniform(4, 16, 4)", STEPS),  # their end is one of the values, Hydra's is not
        ("tune.qrandint(4, 16, 4)", STEPS),
        ("trial.suggest_int('r', 4, 16, step=4)", STEPS),
        ({"distribution": "q_uniform", "min": 4, "max": 16, "q": 4}, STEPS),
        ("suggest_categorical('r', [4, 8, 12, 16])", STEPS),
        ("hp.choice('r', [4, 8, 12, 16])", STEPS),
        ("quniform(0, 0.3, 0.1)", Choice(name="peft.r", options=(0.0, 0.1, 0.2, 0.3))),
        ("trial.suggest_float('x', 1e-5, 1e-2, log=True)", RATES),
        ("suggest_float('x', low=1e-5, high=1e-2, log=True)", RATES),
        ("suggest_loguniform('x', 1e-5, 1e-2)", RATES),
        ("tune.qloguniform(1e-5, 1e-2, 1e-5)", RATES),
        ("inv_log_uniform_values(1e-5, 1e-2)", RATES),
        (  # of exponents
            {"distribution": "log_uniform", "min": -11.512925464970229, "max": -4.605170185988091},
            RATES,
        ),
        ("hp.loguniform('x', -11.512925464970229, -4.605170185988091)", RATES),
        ("suggest_int('r', 4, 16)", Interval(name="peft.r", low=4, high=16, integer=True)),
    ],
)
def test_searches_of_other_tools_mean_the_same_here(theirs: Any, meant: Choice | Interval) -> None:
    ours = foreign(theirs)
    assert ours is not None
    assert parse({meant.name: ours}).dimensions == (meant,)


def test_a_distribution_that_we_have_not_is_not_translated() -> None:
    assert [foreign(each) for each in ("normal(0, 1)", "tune.sample_from(f)", "4")] == [None] * 3


@pytest.mark.parametrize(
    ("expression", "interval"),
    [
        ("interval(0, 1)", Interval(name="x", low=0.0, high=1.0)),
        ("interval(-0.5, 0.5)", Interval(name="x", low=-0.5, high=0.5)),
        ("tag(log, interval(1e-5, 1e-2))", Interval(name="x", low=1e-5, high=1e-2, log=True)),
        ("int(interval(4, 64))", Interval(name="x", low=4, high=64, integer=True)),
        ("tag(int, interval(4, 64))", Interval(name="x", low=4, high=64, integer=True)),
        (
            "tag(log, int, interval(4, 64))",
            Interval(name="x", low=4, high=64, log=True, integer=True),
        ),
    ],
)
def test_intervals(expression: str, interval: Interval) -> None:
    space = parse({"x": expression})
    assert space.dimensions == (interval,)
    assert space.is_continuous == (not interval.integer)


def test_a_mapping_choice_sets_its_keys_together() -> None:
    text = f"choice({{{BATCH}: 8, {ACCUMULATION}: 1}}, {{{BATCH}: 2, {ACCUMULATION}: 4}})"
    listed = [{BATCH: 8, ACCUMULATION: 1}, {BATCH: 2, ACCUMULATION: 4}]
    written, in_yaml = parse({"batching": text}), parse({"batching": listed})
    assert written == in_yaml
    assert set_by(written.dimensions[0]) == (BATCH, ACCUMULATION)
    assert [written.values(picked) for picked in written.grid()] == listed


REFUSALS = [
    ("interval(1e-2, 1e-5)", "low 0.01 must be below high 1e-05; swap them?"),
    ("interval(1, 1)", "low 1 must be below high 1"),
    ("tag(log, interval(0, 1))", "a log interval starts above 0, not at 0."),
    ("tag(log, interval(-1, 1))", "a log interval starts above 0, not at -1."),
    ("interval(nan, 1)", "needs two finite numbers"),
    ("interval(0, inf)", "needs two finite numbers"),
    ("tag(ln, interval(1, 2))", "knows the tags log and int, not ln."),
    ("tag(int, interval(0.5, 2))", "an int interval needs whole bounds"),
    ("interval(1)", "missing a required argument: 'end'"),
    ("interval(a, b)", "Write choice(a, b), range(1, 9, 2), interval("),
    ("choice()", "an empty choice has nothing to try"),
    ([], "an empty choice has nothing to try"),
    ("choice(1e-4, 1e-3, 0.0001)", "lists 0.0001 twice; once is enough."),
    ("choice(1, 1.0)", "lists 1.0 twice"),
    ("choice(1, true)", "lists true twice"),
    ("choice(a, b, b, a)", 'lists "a", "b" twice'),
    ("choice({a: 1, b: 2}, {b: 2, a: 1})", 'lists {"a": 1, "b": 2} twice'),
    ("choice(1, nan)", "nan and inf are no values"),
    ("choice({a: nan})", "nan and inf are no values"),
    ("choice([1, inf])", "nan and inf are no values"),
    ("choice({a: 1}, 2)", "mixes mappings and single values"),
    ("choice({a: 1}, {b: 1})", "every mapping of a choice must set the same keys"),
    ("choice({})", "must set some key"),
    ("choice({trainer.hub_token: a1})", "sets trainer.hub_token, a secret"),
    ("range(5, 1)", "range(5, 1, 1) is empty; its end is left out."),
    ("range(1, 5, 0)", "a step other than 0"),
    ("range(0, inf)", "needs finite numbers"),
    ("range(0, 1000000000)", "has 1000000000 values; write interval"),
    ("tag(log, choice(1, 2))", "takes no tag; tags belong to an interval"),
    ("shuffle(choice(1, 2))", "cannot be shuffled"),
    ("1e-4", "is one value, not something to search. Write choice("),
    (None, "is one value, not something to search"),
    ({"a": 1}, "Write choice("),
    ("glob(*)", "is one value, not something to search"),
    ("choice(a", "Write choice("),
    ("", "is one value"),
]


@pytest.mark.parametrize(("expression", "message"), REFUSALS)
def test_what_cannot_be_searched_is_refused_with_the_way_out(expression: Any, message: str) -> None:
    (said,) = refused({"peft.r": expression})
    assert said.startswith("sweep.space.peft.r")
    assert message in said


def test_all_problems_of_a_space_are_found_at_once() -> None:
    space = {f"key{i}": expression for i, (expression, _) in enumerate(REFUSALS)}
    said = refused({**space, "fine": "choice(1, 2)"}, {"nothing": "fine=1", "fine": "fine"})
    for i, (_, message) in enumerate(REFUSALS):
        assert any(f"key{i}" in line and message in line for line in said)
    assert len(said) == len(REFUSALS) + 2


def test_a_secret_is_nothing_to_search_and_is_not_shown() -> None:
    (said,) = refused({"trainer.hub_token": "choice(hf_first, hf_second)"})
    assert said == (
        "sweep.space.trainer.hub_token = ***: holds a secret, which is nothing to search."
    )
    (said,) = refused({"both": "choice({trainer.hub_token: hf_first})"})
    assert "hf_first" not in said


def test_one_key_is_searched_in_one_place() -> None:
    (said,) = refused({ACCUMULATION: "choice(1, 2)", "batching": [{BATCH: 8, ACCUMULATION: 1}]})
    assert said == (
        f"sweep.space.batching: sets {ACCUMULATION}, which {ACCUMULATION} sets too; "
        "search it in one place."
    )


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"optm": "optim=sgd"}, "sweep.when.optm: is not searched in sweep.space. Did you mean op"),
        ({"decay": "optim"}, "sweep.when.decay = optim: is written key=value, or key=choice(a, b)"),
        ({"decay": "=sgd"}, "is written key=value"),
        ({"decay": "optim=choice("}, "sweep.when.decay = optim=choice("),
        ({"decay": "optim=adam"}, "optim is never adam; it is one of sgd, adamw. Did you mean ada"),
        ({"decay": "optim=choice(sgd, x)"}, "optim is never x"),
        ({"decay": "rate=0.5"}, "rate is an interval; a condition needs a choice or a range."),
        ({"optim": "optim=sgd"}, "goes in a circle: optim -> optim"),
        ({"optim": "decay=1", "decay": "optim=sgd"}, "in a circle: optim -> decay -> optim"),
    ],
)
def test_conditions_that_cannot_hold_are_refused(when: dict[str, str], message: str) -> None:
    space = {"optim": "choice(sgd, adamw)", "decay": "choice(0, 1)", "rate": "interval(0, 1)"}
    (said,) = refused(space, when)
    assert message in said


def test_a_grid_goes_as_it_is_written_with_the_first_key_outermost() -> None:
    space = parse({"b": "choice(2, 1)", "a": "range(0, 2)", "c": ["x"]})
    assert [tuple(space.values(picked).items()) for picked in space.grid()] == [
        (("b", 2), ("a", 0), ("c", "x")),
        (("b", 2), ("a", 1), ("c", "x")),
        (("b", 1), ("a", 0), ("c", "x")),
        (("b", 1), ("a", 1), ("c", "x")),
    ]
    assert space.size() == 4


def test_a_conditional_key_is_walked_only_where_its_condition_holds() -> None:
    space = parse(
        {"decay": "choice(0, 0.1)", "optim": "choice(sgd, adamw, adafactor)"},
        {"decay": "optim=choice(adamw, adafactor)"},
    )
    assert [space.values(picked) for picked in space.grid()] == [
        {"optim": "sgd"},
        {"optim": "adamw", "decay": 0},
        {"optim": "adamw", "decay": 0.1},
        {"optim": "adafactor", "decay": 0},
        {"optim": "adafactor", "decay": 0.1},
    ]
    assert space.size() == 5
    assert space.is_conditional


def test_conditions_may_hang_on_mappings_on_each_other_and_on_the_base_config() -> None:
    space = parse(
        {
            "late": "choice(1, 2)",
            "inner": "choice(1, 2)",
            "outer": [{"optim": "sgd"}, {"optim": "adamw"}],
            "off": "choice(1, 2)",
        },
        {"inner": "optim=adamw", "late": "inner=2", "off": "kind=full"},
    )
    grid = [space.values(picked) for picked in Space(space.dimensions, space.when).grid()]
    assert grid == [
        {"optim": "sgd"},
        {"optim": "adamw", "inner": 1},
        {"optim": "adamw", "inner": 2, "late": 1},
        {"optim": "adamw", "inner": 2, "late": 2},
    ]
    fixed = Space(space.dimensions, space.when, {"kind": "full"})
    assert fixed.size() == 8


WORDS = st.sampled_from(
    [
        *("choice(", "range(", "interval(", "tag(log,", "int(", "sort(", "shuffle(", "glob("),
        *'(){}[],:=$~+*/."\\',
        *("1", "2", "-3", "0", "1e-5", "1e400", "nan", "inf", "true", "null"),
        *("a", "'b'", "${x}", "key\n"),
    ]
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=12).map("".join))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    space=st.dictionaries(st.one_of(st.sampled_from("abc"), TEXTS), NESTED, max_size=3),
    when=st.dictionaries(st.sampled_from("abc"), TEXTS, max_size=2),
)
def test_whatever_is_written_gives_a_space_or_problems(
    space: dict[str, Any], when: dict[str, str]
) -> None:
    problems: list[Problem] = []
    parsed = parse_space(space, when, problems)
    for problem in problems:
        assert str(problem).startswith("sweep.")
    if not problems and not parsed.is_continuous:
        grid = [repr(picked) for picked in parsed.grid()]
        assert len(set(grid)) == len(grid)


@settings(max_examples=100, deadline=None)
@given(expression=st.lists(WORDS, min_size=1, max_size=5).map(lambda w: f"choice({','.join(w)})"))
def test_every_choice_is_named_by_what_it_is(expression: str) -> None:
    parsed = parse_space({"x": expression}, {}, [])
    for dimension in parsed.dimensions:
        assert isinstance(dimension, Choice)
        for option, label in zip(dimension.options, dimension.labels, strict=True):
            assert dimension.option(label) is option


def test_a_large_grid_is_counted_without_walking_it() -> None:
    large = parse({"a": "range(1, 100)", "b": "range(0, 1000)", "c": "choice(x, y)"})
    assert large.size() == 99 * 1000 * 2
    halved = parse({"a": "range(1, 100)", "b": "range(0, 1000)", "c": "choice(x, y)"}, {"b": "c=x"})
    assert halved.size() == 99 * 1000 + 99


def test_a_space_over_some_keys_keeps_what_their_conditions_ask() -> None:
    space = parse({"a.x": "1,2", "a.y": "interval(0, 1)", "b": "3,4", "c": "5,6"}, {"a.y": "b=3"})
    assert [each.name for each in space.over(["a.y"]).dimensions] == ["b", "a.y"]
    assert [each.name for each in space.over(["a"]).dimensions] == ["a.x", "b", "a.y"]
    assert list(space.over(["a.y"]).ends()) == [
        {"b": 3, "a.y": 0.0},
        {"b": 3, "a.y": 1.0},
        {"b": 4},
    ]
