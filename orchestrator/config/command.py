"""Turn a command line into a spec: compose it by Hydra, read it, and check it on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.cluster.gpus import usable
from orchestrator.cluster.ray_cluster import ask_cluster, gpus_of_cluster
from orchestrator.config import compose
from orchestrator.config.checks import (
    is_of_here,
    read_space,
    spec_problems,
    training_problems,
    with_search,
)
from orchestrator.config.engine_choice import engine_problems
from orchestrator.config.run_folder_claim import as_begun, holds
from orchestrator.storage.run_dir import folder_of
from sweeps.config.spec import Spec
from sweeps.config.validation import read_spec, section_problems
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.space.space import Space

_MAX_LENGTH = "data.max_length"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line as read, before the libraries are asked about it.

    Attributes:
        config: the composed and resolved config.
        spec: None if some value does not fit its key.
        problems: what is wrong with it, as far as can be seen without the libraries.
        given: the keys that the command line sets.
    """

    config: Mapping[str, Any]
    spec: Spec | None
    space: Space
    problems: Sequence[Problem]
    given: frozenset[str] = frozenset()

    @classmethod
    def read(cls, argv: Sequence[str]) -> Command:
        """Read a command line.

        Raises:
            ConfigError: it cannot be composed, or a section is missing.
        """
        made = compose.composed_of(argv)
        try:
            read = cls.of(made.config, made.base, made.name, made.run_dir)
        except ConfigError as error:
            raise ConfigError([*made.problems, *error.problems]) from None
        space = replace(read.space, notes=made.notes)
        problems = [*made.problems, *read.problems]
        return replace(read, space=space, problems=problems, given=made.given)

    @classmethod
    def of(
        cls, config: Mapping[str, Any], base: Mapping[str, Any], name: str, run_dir: str
    ) -> Command:
        """Read what `compose.compose_config` returned; raises as `read` does."""
        problems = section_problems(config)
        if problems:
            raise ConfigError(problems)
        spec = read_spec(
            config,
            base=base,
            public=compose.public(config),
            default_name=name,
            default_run_dir=run_dir,
            problems=problems,
        )
        return cls(config=config, spec=spec, space=read_space(config, problems), problems=problems)

    def within_context(self, spec: Spec) -> tuple[Spec, list[str]]:
        """Lower a default data.max_length to what the model reads; the spec, and a note if it was.

        What the user has typed stays.
        """
        return (spec, []) if _MAX_LENGTH in self.given else within_context(spec)

    def check(self) -> tuple[Spec, Space]:
        """Check the config with the libraries, whose imports take seconds; the spec and the space.

        Raises:
            ConfigError: something is wrong; it names everything.
        """
        spec, space, problems = self.spec, self.space, list(self.problems)
        if spec is not None:
            spec, notes = self.within_context(spec)
            space = replace(space, notes=(*space.notes, *notes))
        device = guess_device(spec) if spec is not None else "cpu"
        found = training_problems(self.config, space, device)
        if spec is not None:
            found += spec_problems(spec, space)
        if spec is not None and found and holds(folder_of(spec), spec):
            begun = [problem for problem in found if not is_of_here(problem)]
            space = replace(space, notes=(*space.notes, *as_begun(begun)))
            found = [problem for problem in found if is_of_here(problem)]
        problems += found
        if spec is not None and not problems:
            problems += engine_problems(spec, space, device)
        if problems or spec is None:
            raise ConfigError([with_search(self.config, problem) for problem in problems])
        return spec, space


def within_context(spec: Spec) -> tuple[Spec, list[str]]:
    """Lower a default data.max_length to what the model reads; the spec, and a note if it was."""
    from trainers.model.source import context_tokens, load_config

    model, data = spec.train.model, spec.train.data
    try:
        most = context_tokens(load_config(model))
    except (SweepError, ConfigError):
        return spec, []  # the model is looked at, and its fault told, with the data
    if most is None or data.max_length <= most:
        return spec, []
    base, public = (
        {**config, "data": {**config["data"], "max_length": most}}
        for config in (spec.base, spec.public)
    )
    train = replace(spec.train, data=replace(data, max_length=most))
    note = f"{_MAX_LENGTH}={most}, all that {model.path} reads; data={data.source} has "
    note += f"{data.max_length:,} as its default"
    return replace(spec, train=train, base=base, public=public), [note]


def checked(command: Command) -> tuple[Spec, Space]:
    """Check a command line, having joined its cluster if nothing else knows the devices.

    Raises:
        ConfigError: something is wrong; it names everything.
    """
    if command.spec is not None and not command.problems and asks_cluster(command.spec):
        ask_cluster(command.spec.cluster)
    return command.check()


def read_command(argv: Sequence[str]) -> tuple[Spec, Space]:
    """Read and check a command line; raises ConfigError."""
    return Command.read(argv).check()


def guess_device(spec: Spec) -> str:
    """Where trials will train, "cpu" or "cuda", before they are placed.

    If a cluster was joined, its own resources count, else this machine's.
    """
    gpus = spec.engine.gpus_per_trial
    is_local = spec.cluster.kind == "local"
    if gpus == 0 or (is_local and spec.cluster.gpus == 0):
        return "cpu"
    if gpus != "auto":
        return "cuda"
    found = None if is_local else gpus_of_cluster()
    return "cuda" if (usable() if found is None else found) else "cpu"


def asks_cluster(spec: Spec) -> bool:
    """Whether the device is only known once the cluster is joined."""
    return spec.cluster.kind != "local" and spec.engine.gpus_per_trial == "auto"
