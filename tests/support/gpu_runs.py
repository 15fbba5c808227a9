"""Which runs of the tests may see a GPU, and why one cannot have one."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"
_NOT_ASKED_FOR = "needs a GPU, and runs with `make test-gpu` (pytest -m gpu)"


def asks_for_gpus(expression: str) -> bool:
    """Whether `-m EXPRESSION` selects nothing but tests that need a GPU."""
    words = expression.split()
    return words[:1] == ["gpu"] and "or" not in words


def obstacle(expression: str) -> str:
    """Why a test that needs a GPU is skipped; empty where it can run."""
    if not asks_for_gpus(expression):
        return _NOT_ASKED_FOR
    import torch

    if torch.cuda.is_available():
        return ""
    visible = os.environ.get(VISIBLE)
    hidden = f", and {VISIBLE} is {visible!r}" if visible is not None else ""
    return f"needs a GPU: torch {torch.__version__} sees none here{hidden}"
