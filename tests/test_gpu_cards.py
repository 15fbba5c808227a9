"""What the tests on a GPU work with: it sees what it is to see."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.cards import Matmuls, body, child, counted, llama, operators, reseal, rows_of
from support.packs import pack, short_rows, small
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainers.model.source import load_config
from trainers.trial.checkpoint import verify


def test_the_base_has_the_heads_that_flash_attention_takes_and_grouped_queries() -> None:
    config = load_config(llama())
    assert config.head_dim == 64
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 1)


def test_rows_have_the_lengths_that_were_asked_for() -> None:
    data = rows_of([100, 37], [5, 8, 7])
    assert [len(ids) for ids in data.train["input_ids"]] == [100, 37]
    assert [len(ids) for ids in data.evaluation["input_ids"]] == [5, 8, 7]


def test_the_types_that_matrices_are_multiplied_in_are_seen_under_autocast_too() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    with Matmuls() as seen:
        _ = a @ b
        with torch.autocast("cpu", torch.bfloat16):
            _ = F.linear(a, b.T, torch.ones(2))
            _ = torch.bmm(a[None], b[None])
    assert seen.types == {torch.float32: 1, torch.bfloat16: 2}


def test_the_kernel_of_attention_is_seen_by_name() -> None:
    q, k = torch.ones(1, 4, 8, 64), torch.ones(1, 1, 8, 64)

    def attend() -> None:
        F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)

    with sdpa_kernel(SDPBackend.MATH):
        assert operators(attend)["aten::_scaled_dot_product_attention_math"]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        called = operators(attend)
    assert not [name for name in called if "attention_math" in name]
    assert [name for name in called if "attention" in name and "aten::" in name]


def test_passes_are_counted_and_what_counts_is_gone_afterwards(tmp_path: Path) -> None:
    made = pack(tmp_path, [small(model=llama()), small(model=llama(), seed=4)])
    before = body(made).forward
    with counted(body(made), "forward") as calls:
        made.advance()
    assert len(calls) == 1
    with counted(body(made), "forward") as calls:
        made.engine._evaluation.measure(made.engine._lanes)
    assert len(calls) >= len(made.engine._evaluation._rows.batches) > 0
    assert body(made).forward == before


def test_a_checkpoint_that_was_resealed_is_whole(tmp_path: Path) -> None:
    made = pack(tmp_path, [small(model=llama())], data=short_rows()).finish()
    folder = made.checkpoint(0, 6)
    state = folder / "rng_state.pth"
    reseal(folder, lambda draft: (draft / "rng_state.pth").write_bytes(b"other"))
    assert verify(folder).step == 6
    assert state.read_bytes() == b"other"


@pytest.mark.slow
def test_a_child_finds_our_packages() -> None:
    done = child("from trainers.trial.failures import is_device_lost; print(1)")
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("name", ["lanes", "passes", "memory", "sweeps"])
def test_the_tests_on_a_gpu_can_be_imported(name: str) -> None:
    runpy.run_path(str(Path(__file__).parent / "gpu" / f"test_gpu_{name}.py"))
