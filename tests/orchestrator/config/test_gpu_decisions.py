"""What is decided for a machine by what torch and Ray see of it: one table.

Nothing here has a GPU: `torch.cuda` answers for the machine, and the list of nodes holds what Ray
itself would make of the cards and of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from support.config_reading import read

from orchestrator.cluster import gpus, ray_cluster
from orchestrator.cluster.placement import place
from orchestrator.config import engine_choice
from orchestrator.config.checks import spec_problems
from orchestrator.config.command import guess_device
from sweeps.config.spec import Spec
from sweeps.core.errors import ConfigError
from trainers.model import precision
from trainers.model.loading import choose

CPUS = 16  # of each node


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The driver's machine.

    Attributes:
        cards: that NVML counts.
        torch_sees: of them, with this CUDA_VISIBLE_DEVICES, this torch and this driver.
        major: of the compute capability; from 8 on there is bfloat16.
        visible: CUDA_VISIBLE_DEVICES; None: it is not set.
        nodes: GPUs of each other node of the cluster that the machine belongs to.
    """

    cards: int
    torch_sees: int
    major: int = 9
    visible: str | None = None
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What came of it; a further decision is a further field.

    Attributes:
        device: for which the config is checked.
        dtype, full, qlora: number type of a base that is frozen, trained, quantized.
        autocast: what each of the three computes in; `no` without autocast.
        workers, share: how many, and what each has of a GPU; 0: they train on the CPU.
        told: words of the plan about the devices.
        refused: words of the refusal; nothing else is decided then.
    """

    device: str = "cuda"
    dtype: str = "bfloat16"
    full: str = "float32"
    qlora: str = "bfloat16"
    autocast: str = "bfloat16 bfloat16 bfloat16"
    attention: str = "causal_sdpa"
    engine: str = "packed"
    lanes: int = 32
    workers: int = 1
    share: float = 1.0
    told: str = ""
    refused: str = ""


H100 = Machine(cards=1, torch_sees=1)
TWO = Machine(cards=2, torch_sees=2)
FOUR = Machine(cards=4, torch_sees=4)
A10 = Machine(cards=1, torch_sees=1, major=8)
T4 = Machine(cards=1, torch_sees=1, major=7)
SLICED = Machine(cards=1, torch_sees=1, visible=",".join(f"MIG-{n}" for n in range(7)))
BY_UUID = Machine(cards=4, torch_sees=1, visible="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
HIDDEN = Machine(cards=4, torch_sees=0, visible="")
NONE_OF = Machine(cards=4, torch_sees=0, visible="-1")  # Ray takes it for the name of one
ONE_TOO_MANY = Machine(cards=4, torch_sees=2, visible="0,1,7")
TORCH_CANNOT = Machine(cards=2, torch_sees=0)  # a CPU build, or an old driver
NO_NVML = Machine(cards=0, torch_sees=1)
WITHOUT = Machine(cards=0, torch_sees=0)
HEAD = Machine(cards=0, torch_sees=0, nodes=(4, 2))
HEAD_OF_CPUS = Machine(cards=0, torch_sees=1, nodes=(0, 0))  # `ray start --num-gpus=0`

ON_GPU = Decided()
ON_CPU = Decided(
    device="cpu",
    dtype="float32",
    qlora="float32",
    autocast="no no no",
    lanes=16,
    workers=CPUS,
    share=0.0,
    told="1 CPU",
)
ON_T4 = Decided(dtype="float32", qlora="float16", autocast="no no float16")
CLUSTER = "cluster=ray cluster.address=auto"
HALF = "engine.gpus_per_trial=0.5"

# fmt: off
TABLE: dict[str, tuple[Machine, str, Decided]] = {
    "one H100": (H100, "", replace(ON_GPU, told="1 at once on this machine, 1 GPU each")),
    "its CPU": (H100, "engine.gpus_per_trial=0", ON_CPU),
    "its CPU, by the cluster": (H100, "cluster.gpus=0", replace(ON_CPU, share=0.0)),
    "solo": (H100, "engine=solo", replace(ON_GPU, engine="solo", lanes=1)),
    "full": (H100, "peft=full", replace(ON_GPU, engine="solo", lanes=1)),
    "halves of one": (H100, HALF, replace(ON_GPU, workers=2, share=0.5)),
    "two": (TWO, "", replace(ON_GPU, workers=2)),
    "two, one wanted": (TWO, "cluster.gpus=1", replace(ON_GPU, workers=1)),
    "two, three wanted": (TWO, "cluster.gpus=3", Decided(refused="this machine has 2 that torch")),
    "halves of two": (TWO, HALF, replace(ON_GPU, workers=4, share=0.5)),
    "quarters of four": (FOUR, "engine.gpus_per_trial=0.25", replace(
        ON_GPU, workers=8, share=0.5, told="2 share a GPU")),
    "groups of four": (FOUR, "engine.devices_per_trial=2", replace(
        ON_GPU, engine="solo", lanes=1, workers=2, told="2 x 1 GPU each")),
    "A10": (A10, "", ON_GPU),
    "T4": (T4, "", ON_T4),
    "T4, quantized": (T4, "peft=qlora", replace(ON_T4, engine="solo", lanes=1)),
    "T4, quantized, as lanes": (T4, "peft=qlora engine=packed", Decided(
        refused="this GPU computes in float16, and each trial would need a loss scale of its own")),
    "int8": (H100, "peft=qlora model.quantization=int8", replace(ON_GPU, engine="solo", lanes=1)),
    "quantized": (H100, "peft=qlora", ON_GPU),
    "slices": (SLICED, "", replace(ON_GPU, workers=7)),
    "all slices by number": (SLICED, "cluster.gpus=7", replace(ON_GPU, workers=7)),
    "some slices": (SLICED, "cluster.gpus=3", replace(ON_GPU, workers=3)),
    "more slices": (SLICED, "cluster.gpus=8", Decided(refused="this machine has 7 that torch")),
    "groups of slices": (SLICED, "engine.devices_per_trial=2", Decided(
        refused="devices_per_trial = 2: slices of GPUs (MIG) cannot train a trial together")),
    "a UUID": (BY_UUID, "", ON_GPU),
    "none visible": (HIDDEN, "", ON_CPU),
    "none visible, one wanted": (HIDDEN, "engine.gpus_per_trial=1", Decided(
        refused="engine.gpus_per_trial = 1: torch can use no GPU here")),
    "-1": (NONE_OF, "", replace(ON_CPU, told="1 GPU stays idle: torch can use none")),
    "an index too many": (ONE_TOO_MANY, "", Decided(refused="Set cluster.gpus=2.")),
    "an index too many, mended": (ONE_TOO_MANY, "cluster.gpus=2", replace(ON_GPU, workers=2)),
    "torch cannot": (TORCH_CANNOT, "", replace(ON_CPU, told="2 GPUs stay idle: torch can use")),
    "torch cannot, on the CPU": (TORCH_CANNOT, "engine.gpus_per_trial=0", ON_CPU),
    "torch cannot, one wanted": (TORCH_CANNOT, "engine.gpus_per_trial=1", Decided(
        refused="or train on the CPU: engine.gpus_per_trial=0.")),
    "torch cannot, two wanted": (TORCH_CANNOT, "cluster.gpus=2", Decided(
        refused="or train on the CPU: cluster.gpus=0.")),
    "no NVML": (NO_NVML, "", Decided(refused="Ray counts no GPU here, and torch can use 1: set")),
    "no NVML, mended": (NO_NVML, "cluster.gpus=1", ON_GPU),
    "no GPU": (WITHOUT, "", ON_CPU),
    "no GPU, one wanted": (WITHOUT, HALF, Decided(refused="torch can use no GPU here")),
    "driver without": (HEAD, CLUSTER, replace(ON_GPU, workers=6, told="3 nodes of the cluster")),
    "driver without, halves": (HEAD, f"{CLUSTER} {HALF}", replace(ON_GPU, workers=12, share=0.5)),
    "driver without, CPUs": (HEAD, f"{CLUSTER} engine.gpus_per_trial=0", replace(
        ON_CPU, workers=3 * CPUS)),
    "driver alone with one": (HEAD_OF_CPUS, CLUSTER, replace(ON_CPU, workers=3 * CPUS)),
    "no cluster has one": (WITHOUT, f"{CLUSTER} engine.gpus_per_trial=1", Decided(
        refused="the largest of 1 nodes has 0 GPUs")),
}
# fmt: on


@pytest.mark.parametrize(("machine", "words", "expected"), TABLE.values(), ids=TABLE)
def test_decisions(
    machine: Machine, words: str, expected: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = decide(machine, words, monkeypatch)
    assert expected.told in found.told
    assert expected.refused in found.refused
    assert replace(found, told="", refused="") == replace(expected, told="", refused="")
    assert bool(expected.refused) == bool(found.refused)
    assert ("idle" in found.told) is ("idle" in expected.told)


def decide(machine: Machine, words: str, monkeypatch: pytest.MonkeyPatch) -> Decided:
    spec, space = read("sweep=lr_grid", *words.split())
    pretend(machine, spec, monkeypatch)
    device = guess_device(spec)
    problems = spec_problems(spec, space) or engine_choice.engine_problems(spec, space, device)
    if problems:
        return Decided(refused=str(ConfigError(problems)))
    model = replace(spec.train.model, quantization="none")
    frozen, full, qlora = (
        choose(model, device),
        choose(model, device, trains_base=True),
        choose(replace(model, quantization="nf4"), device),
    )
    try:
        placed = place(spec.engine, spec.cluster, engine_choice.planned_trials(spec, space) or 0)
    except ConfigError as error:
        return Decided(refused=str(error))
    engine = engine_choice.choose(spec, space, on_gpu=bool(placed.gpus))
    assert device == ("cuda" if placed.gpus else "cpu"), "judged for another than they train on"
    return Decided(
        device=device,
        dtype=name(frozen.dtype),
        full=name(full.dtype),
        qlora=name(qlora.dtype),
        autocast=" ".join(name(each.autocast) for each in (frozen, full, qlora)),
        attention=frozen.attn_implementation,
        engine=engine.why.split()[1].rstrip(","),
        lanes=engine.lanes,
        workers=placed.slots,
        share=placed.gpus,
        told=placed.where,
    )


def pretend(machine: Machine, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch and Ray answer for this machine."""
    if machine.visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine.visible)
    properties = SimpleNamespace(major=machine.major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.torch_sees > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: machine.torch_sees)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        precision, "_FLASH_PACKAGES", dict.fromkeys(precision._FLASH_PACKAGES, "_none")
    )
    is_local = spec.cluster.kind == "local"
    own = counted_by_ray(
        machine, gpus.given_to_ray(spec.cluster) if is_local else None, monkeypatch
    )
    nodes = [{"Resources": {"CPU": CPUS, "GPU": count}} for count in (own, *machine.nodes)]
    for module in ("ray_cluster", "placement"):
        monkeypatch.setattr(f"orchestrator.cluster.{module}.alive_nodes", lambda: nodes)
    joined = SimpleNamespace(wait=lambda *_: None, runs=True)
    monkeypatch.setattr(ray_cluster, "_ray", None if is_local else joined)


def counted_by_ray(machine: Machine, given: int | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """GPUs of a node that Ray starts here, in its own words."""
    monkeypatch.setattr(
        NvidiaGPUAcceleratorManager,
        "get_current_node_num_accelerators",
        staticmethod(lambda: machine.cards),
    )
    _, count = ResourceAndLabelSpec._get_current_node_accelerator(given, {})
    return int(count)


def name(dtype: torch.dtype | None) -> str:
    return str(dtype or "no").removeprefix("torch.")
