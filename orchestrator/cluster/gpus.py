"""Counts this machine's GPUs: those that Ray may give out, and those that torch can use."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.core.errors import ConfigError, Problem
from sweeps.storage.run_folder import RunFolder

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SLICE = "MIG-"
_DEVICES = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name


def slices() -> int:
    """Slices of GPUs (MIG) that CUDA_VISIBLE_DEVICES lists.

    A process sees one of them only, and NVML counts the card of which they are parts: neither torch
    nor Ray tells how many workers can have a slice each.
    """
    listed = os.environ.get(_VISIBLE, "").split(",")
    others = (n for n, name in enumerate(listed) if not name.strip().startswith(_SLICE))
    return next(others, len(listed))


def given_to_ray(cluster: ClusterSpec) -> int | None:
    """GPUs that a Ray of our own is told of; None: it counts the cards by itself."""
    return cluster.gpus if cluster.gpus is not None else slices() or None


def usable() -> int:
    """GPUs of this machine that torch can use, one to a process; asking makes no CUDA context."""
    import torch

    # `device_count` alone asks NVML, which also counts what torch's build or the driver rules out.
    if not torch.cuda.is_available():
        return 0
    return slices() or torch.cuda.device_count()


def gpu_problems(engine: EngineSpec, cluster: ClusterSpec) -> list[Problem]:
    """GPUs of this machine that are asked for and that torch cannot use; a cluster's are counted
    when it is joined."""
    asked, devices = engine.gpus_per_trial, engine.devices_per_trial
    if cluster.kind != "local" or asked == 0:
        return []
    found = []
    if devices > 1 and slices():
        message = "slices of GPUs (MIG) cannot train a trial together: a process sees one only."
        found.append(Problem(key="engine.devices_per_trial", value=devices, message=message))
    if asked == "auto" and not cluster.gpus:
        return found
    there = usable()
    if asked != "auto" and not there:
        found.append(_unusable("engine.gpus_per_trial", asked, "torch can use no GPU here"))
    if cluster.gpus and not there:
        found.append(_unusable("cluster.gpus", cluster.gpus, "torch can use no GPU here"))
    elif cluster.gpus and cluster.gpus > there:
        message = f"this machine has {there} that torch can use."
        found.append(Problem(key="cluster.gpus", value=cluster.gpus, message=message))
    return found


def idle_beside(seen: int, engine: EngineSpec, cluster: ClusterSpec) -> str:
    """What to say if trials train on this machine's CPU beside the GPUs that Ray has `seen`.

    Empty if torch can use those GPUs, or if there are none.

    Raises:
        ConfigError: Ray and torch do not see the same GPUs, and a choice between them is needed.
    """
    asked, there = engine.gpus_per_trial, usable()
    if seen <= there and (seen or not there or cluster.gpus == 0):
        return ""
    if there and not seen:
        message = (
            f"Ray counts no GPU here, and torch can use {there}: set cluster.gpus={there}, or "
            "engine.gpus_per_trial=0 to train on the CPU."
        )
    elif there:
        message = (
            f"Ray sees {_gpus(seen)} here, and torch can use {there} ({sides()}): some trials "
            f"would find none. Set cluster.gpus={there}."
        )
    elif asked == "auto":
        return _idle(seen)
    else:
        words = f"Ray sees {_gpus(seen)} here, and torch can use none"
        found = _unusable("engine.gpus_per_trial", asked, words)
        raise ConfigError([found])
    raise ConfigError([Problem(key="cluster.gpus", value=cluster.gpus, message=message)])


def idle_cards(engine: EngineSpec, cluster: ClusterSpec) -> str:
    """The same, before there is a Ray that could have counted them."""
    is_free = engine.gpus_per_trial == "auto" and cluster.gpus != 0
    if cluster.kind != "local" or not is_free or usable():
        return ""
    seen = sum(1 for _ in _DEVICES.glob("nvidia[0-9]*"))
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        seen = min(seen, len(visible.split(",")) if visible else 0)
    return _idle(seen) if seen else ""


def sides() -> str:
    """What torch was built for, and which driver there is."""
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get(_VISIBLE)
    limit = "" if visible is None else f"; {_VISIBLE}={visible}"
    return f"torch {torch.__version__}, {built}; {_driver()}{limit}"


def cannot_use(gpus: float) -> str:
    """Why a worker that was given `gpus` cannot train on them; empty if it can."""
    return f"cannot use its GPU: {sides()}" if gpus and not usable() else ""


def keep_kernels(folder: RunFolder) -> None:
    """See that Triton, which compiles a part of SFTTrainer on a GPU, can write what it compiles."""
    if "TRITON_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"))
    cache = home / ".triton" / "cache"  # Triton's own choice
    with suppress(OSError):
        if home.is_absolute():  # "~" if a user has no home
            cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return
    os.environ["TRITON_CACHE_DIR"] = str(folder.scratch / "triton")


def let_segments_grow() -> None:
    """Have torch's CUDA allocator use segments that grow; it reads this as it begins.

    The rows of each pass have another length, and segments of fixed sizes are left with gaps that
    nothing fits into. A setting of the user's stays.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def _unusable(key: str, value: float, found: str) -> Problem:
    message = f"{found} ({sides()}). {_way_out()}, or train on the CPU: {key}=0."
    return Problem(key=key, value=value, message=message)


def _way_out() -> str:
    import torch

    if torch.version.cuda is None:
        return "Install a torch that was built for CUDA"
    if _VISIBLE in os.environ:
        return f"Unset {_VISIBLE}, or name GPUs that there are"
    return (
        f"Install a driver that knows CUDA {torch.version.cuda}, or a torch that was built for an "
        "older CUDA"
    )


def _idle(seen: int) -> str:
    stays = "stays" if seen == 1 else "stay"
    return f"{_gpus(seen)} {stays} idle: torch can use none ({sides()})"


def _driver() -> str:
    try:
        words = _DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no NVIDIA driver found"
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", words)
    return f"NVIDIA driver {found[0]}" if found else "an NVIDIA driver of unknown version"


def _gpus(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"
