"""Recognises errors of training: a loss that is not finite, out of memory, a lost device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class DivergedError(Exception):
    """A loss, gradient norm or evaluation is not a finite number."""


def require_finite(what: str, value: float, step: int) -> None:
    """Raise DivergedError unless `value` is finite; `step` is the optimizer step at hand."""
    if not math.isfinite(value):
        raise DivergedError(f"{what} is {value} at step {step}")


# The words of torch, cuBLAS, cuDNN, NCCL and Triton for it, in small letters. bitsandbytes writes
# it to stderr and ends the process.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA's own words, whoever passes them on
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED, ...
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "can't allocate memory",  # torch, of a CPU
    "cannot allocate memory",  # the system, of a CPU
)
# Errors of which CUDA's documentation says that the process has to be started anew; and those of
# the hardware, which no trial is to blame for.
_LOST = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
    "launch timed out and was terminated",
    "device-side assert triggered",
    "hardware stack error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "over nvlink or a hardware error",
    "busy or unavailable",  # also while the process before still lets go of the device
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left for what was asked."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return _says(error, _OUT_OF_MEMORY)


def is_device_lost(error: BaseException, device: str) -> bool:
    """Whether `device` is lost to this process: every later call would fail as well.

    Other errors of CUDA are as likely to come again in another process. If an error's words say
    nothing, the device itself is asked.
    """
    if _says(error, _LOST):
        return True
    has_one = device.startswith("cuda") and torch.cuda.is_initialized()
    if not has_one or not isinstance(error, RuntimeError):
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as answer:
        return not is_out_of_memory(answer)  # no room for the context: nothing is broken
    return False


def _says(error: BaseException, words: Sequence[str]) -> bool:
    if not isinstance(error, RuntimeError | torch.cuda.DeferredCudaCallError):
        return False
    text = str(error).lower()
    return any(word in text for word in words)
