"""Guards: numbers that are not finite, the clock of a trial, and the memory it takes."""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import time
import weakref
from typing import Any

import pytest
import torch

from trainers.trial.failures import DivergedError, is_device_lost, is_out_of_memory, require_finite
from trainers.trial.meters import PeakMemory, Stopwatch, free_memory, held_mb, paged_mb

BLOCK_MB = 96


class Clock:
    """A time.perf_counter that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    with pytest.raises(DivergedError, match=f"^the training loss is {value} at step 7$"):
        require_finite("the training loss", value, 7)


def test_large_numbers_are_finite() -> None:
    require_finite("the training loss", 1e300, 7)


def first_words(error: Exception) -> str:
    return f"{type(error).__name__}-{str(error)[:50]}"


# What libraries really say: from torch's, NCCL's and Triton's sources, and from public reports.
_HINTS = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile "
    "with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
_NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)
MEMORY = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB "
        "of which 5.44 MiB is free."
    ),
    MemoryError(),
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia."
        "com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.\n" + _HINTS
    ),
    RuntimeError("CUDA error: out of memory\n" + _HINTS),  # before torch 2.8
    RuntimeError("CUDA driver error: out of memory"),  # expandable segments
    torch.cuda.DeferredCudaCallError(
        "CUDA call failed lazily at initialization with error: CUDA error: out of memory"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    torch.distributed.DistBackendError(_NCCL + "Cuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError(_NCCL + "Cuda failure 'out of memory'"),
    RuntimeError(
        "Caught OutOfMemoryError in pin memory thread for device 0.\nOriginal Traceback (most "
        "recent call last):\n...\ntorch.OutOfMemoryError: CUDA out of memory."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 409600000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("unable to mmap 4400 bytes from file <model>: Cannot allocate memory (12)"),
]
LOST = [
    torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nSearch for "
        "`cudaErrorIllegalAddress' in https://docs.nvidia.com/\n" + _HINTS
    ),
    torch.AcceleratorError("CUDA error: unspecified launch failure\n" + _HINTS),
    torch.AcceleratorError("CUDA error: device-side assert triggered\n" + _HINTS),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\n" + _HINTS),
    torch.AcceleratorError("CUDA error: misaligned address\n" + _HINTS),
    torch.AcceleratorError("CUDA error: an illegal instruction was encountered\n" + _HINTS),
    torch.AcceleratorError("CUDA error: the launch timed out and was terminated\n" + _HINTS),
    torch.AcceleratorError(
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error\n" + _HINTS
    ),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\n" + _HINTS),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    torch.distributed.DistBackendError(
        _NCCL + "Cuda failure 'uncorrectable ECC error encountered'"
    ),
]
NEITHER = [
    torch.AcceleratorError("CUDA error: invalid configuration argument\n" + _HINTS),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx( handle, ...`"
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
    torch.distributed.DistBackendError(_NCCL + "Cuda failure 1 'invalid argument'"),
    RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit."
    ),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)"),
    RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
    RuntimeError(
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block "
        "sizes or `num_stages` may help."
    ),
    ValueError("a run that went out of memory is to be named"),  # not torch's word
    DivergedError("the training loss is nan at step 7"),
]


@pytest.mark.parametrize("error", MEMORY, ids=first_words)
def test_each_way_to_be_out_of_memory_is_one(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error, "cpu")


@pytest.mark.parametrize("error", LOST, ids=first_words)
def test_after_some_errors_the_process_can_do_nothing_more(error: Exception) -> None:
    assert is_device_lost(error, "cuda:0")
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", NEITHER, ids=first_words)
def test_other_errors_are_neither(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_device_lost(error, "cpu")


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (None, False),
        (torch.AcceleratorError("CUDA error: unknown error"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
    ],
)
def test_of_an_error_whose_words_say_nothing_the_device_is_asked(
    answer: Exception | None, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def synchronize(device: str) -> None:
        asked.append(device)
        if answer is not None:
            raise answer

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    error = RuntimeError(
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...`"
    )
    assert is_device_lost(error, "cuda:1") is lost
    assert not is_device_lost(error, "cpu")
    assert not is_device_lost(ValueError("peft.r = 0"), "cuda:1")
    assert asked == ["cuda:1"]


def test_a_pause_is_not_counted(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 2
    with watch.paused():
        clock.now += 100
        assert watch.seconds == 2
    clock.now += 3
    assert watch.seconds == 5


def test_earlier_attempts_count(clock: Clock) -> None:
    watch = Stopwatch(60.0)
    clock.now += 5
    assert watch.seconds == 65


def test_a_pause_within_a_pause_ends_with_the_outer_one(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 2
    with watch.paused():
        clock.now += 10
        with watch.paused():
            clock.now += 100
        clock.now += 1000
        assert watch.seconds == 2
    clock.now += 1
    assert watch.seconds == 3


def test_the_clock_runs_on_after_an_error_in_a_pause(clock: Clock) -> None:
    watch = Stopwatch()
    with contextlib.suppress(OSError), watch.paused():
        clock.now += 10
        raise OSError("disk full")
    clock.now += 1
    assert watch.seconds == 1


def touched_block() -> mmap.mmap:
    """Memory of which every page is touched; malloc may have that much free, and not grow."""
    block = mmap.mmap(-1, BLOCK_MB * 2**20)
    block.write(b"\1" * len(block))
    return block


def test_the_peak_stays_when_the_memory_is_given_back() -> None:
    peak = PeakMemory("cpu")
    before = peak.mb
    block = touched_block()
    block.close()
    assert peak.mb > before + 0.8 * BLOCK_MB


@pytest.mark.slow
def test_a_new_trial_starts_with_a_peak_of_its_own() -> None:
    block = touched_block()
    before = PeakMemory("cpu").mb
    block.close()
    free_memory()
    assert PeakMemory("cpu").mb < before - 0.8 * BLOCK_MB


@pytest.mark.slow
def test_memory_that_is_held_is_seen_and_given_back() -> None:
    gc.collect()
    before = held_mb("cpu")
    ring: list[object] = [touched_block()]
    ring.append(ring)  # only the collector can free it
    assert held_mb("cpu") > before + 0.8 * BLOCK_MB
    del ring
    free_memory()
    assert held_mb("cpu") < before + 0.2 * BLOCK_MB


@pytest.mark.slow
def test_which_weight_was_wanted_in_32_bits_is_forgotten() -> None:
    """bitsandbytes goes by a weight's number: of all optimizers that this process makes later."""
    optim = pytest.importorskip("bitsandbytes.optim")
    embedding = torch.nn.Embedding(64, 64)
    watched = weakref.ref(embedding)
    manager = optim.GlobalOptimManager.get_instance()
    manager.register_module_override(embedding, "weight", {"optim_bits": 32})  # as the Trainer does
    assert state_type(optim.AdamW8bit, embedding.weight) == torch.float32
    del embedding
    free_memory()
    assert watched() is None
    other = torch.nn.Parameter(torch.zeros(64, 64))
    assert state_type(optim.AdamW8bit, other) == torch.uint8


def state_type(optimizer_class: Any, weight: torch.nn.Parameter) -> torch.dtype:
    """Of the first moment that an optimizer keeps of it."""
    optimizer = optimizer_class([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept: torch.dtype = optimizer.state[weight]["state1"].dtype
    return kept


@pytest.mark.slow
def test_paged_states_count_as_held_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    pages = functional.GlobalPageManager.get_instance()
    before = paged_mb()
    monkeypatch.setattr(pages, "paged_tensors", [*pages.paged_tensors, torch.zeros(2**20)])
    assert paged_mb() == before + 4
    free_memory()
    assert paged_mb() == before + 4
