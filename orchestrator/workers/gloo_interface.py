"""Which of a node's networks a group's ranks talk over: the one by which Ray knows the node.

Left to itself, gloo takes the one that the host's name resolves to. On many machines that is the
loopback, by which no other node is reached.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_NAME = "GLOO_SOCKET_IFNAME"  # where it is set, by a user who knows better, it stays


class NodeNetwork(TorchConfig):  # type: ignore[misc]
    """TorchConfig whose ranks first choose their network."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Chosen


class _Chosen(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose)
        super().on_start(worker_group, backend_config)


def _choose() -> None:
    """Runs in each rank's process."""
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault(_NAME, name)


def interface_of(address: str) -> str:
    """The network interface that has this address; empty where none has."""
    found: dict[str, list[Any]] = psutil.net_if_addrs()
    for name, places in found.items():
        if any(place.address == address for place in places):
            return name
    return ""
