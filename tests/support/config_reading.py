"""A command line read into a spec and a space, which must be without a fault."""

from __future__ import annotations

from orchestrator.config.checks import read_space
from orchestrator.config.compose import compose_config
from sweeps.config.spec import Spec
from sweeps.config.validation import read_spec
from sweeps.core.errors import Problem
from sweeps.space.space import Space


def read(*words: str) -> tuple[Spec, Space]:
    config, base, name, run_dir = compose_config(words)
    problems: list[Problem] = []
    paths = {"default_name": name, "default_run_dir": run_dir}
    spec = read_spec(config, base=base, public={}, problems=problems, **paths)
    space = read_space(config, problems)
    assert spec is not None
    assert not problems
    return spec, space
