"""Calls the Coordinator's methods, typed: of a Ray actor, or of an object in this process.

Every caller has a `CoordinatorActor`. Where it is remote, it is a `_Remote` that sends each call to
the actor and waits for the answer; in a test it may be the object itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from sweeps.config.spec import Spec
from sweeps.space.space import Space

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor
    from orchestrator.coordinator.assignment import AssignmentRules

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


class _RemoteMethod:
    """One method of the actor: called, it waits for the answer."""

    def __init__(self, method: Any) -> None:
        self.send = method.remote

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import ray

        return ray.get(self.send(*args, **kwargs))


class _Remote:
    """Has the actor's methods; may be sent to other processes."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _RemoteMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return _RemoteMethod(getattr(self._actor, name))


def start_coordinator(
    spec: Spec, space: Space, root: Path, rules: AssignmentRules | None = None
) -> CoordinatorActor:
    """Start the Coordinator as a Ray actor on this node, in a process of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from orchestrator.coordinator.actor import CoordinatorActor

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(CoordinatorActor).options(num_cpus=0, scheduling_strategy=here)
    coordinator = cast("CoordinatorActor", _Remote(remote.remote(spec, space, root, rules)))
    send(coordinator.outlive_signals)
    send(coordinator.warm_up)
    return coordinator


def send(
    method: Callable[_Given, _Answer], *args: _Given.args, **kwargs: _Given.kwargs
) -> Future[_Answer]:
    """Call a method of the Coordinator without waiting for its answer.

    Args:
        method: of a `CoordinatorActor`, remote or local; a local one is called at once.
    """
    if isinstance(method, _RemoteMethod):
        future: Future[_Answer] = method.send(*args, **kwargs).future()
        return future
    answer: Future[_Answer] = Future()
    try:
        answer.set_result(method(*args, **kwargs))
    except Exception as error:
        answer.set_exception(error)
    return answer
