"""Which of a node's networks a group's ranks talk over: the one by which Ray knows the node.

Left to itself, gloo takes the one that the host's name resolves to. On many machines that is the
loopback, by which no other node is reached.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_NAME = "GLOO_SOCKET_IFNAME"  # where it is set, by a user who knows better, it stays
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of netdevice(7)


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
    """The network interface that has this IPv4 address; empty where none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(asking, _GET_ADDRESS, request)
            except OSError:
                continue  # it has none
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
