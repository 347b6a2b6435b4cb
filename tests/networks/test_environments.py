"""The same results however threads wait, and near to them on processors without bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.networks import LightMUNet

from ..conftest import REPOSITORY


def step(dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits and gradients of a network with scans, norms, products and convolutions."""
    torch.manual_seed(0)
    network = LightMUNet(3, 1, 3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    x = torch.rand(2, 1, 32, 32, 32)
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
        logits = network(x).float()
    logits.square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def elsewhere(file: Path, dtype: str, **environment: str) -> dict[str, Tensor]:
    """The same in a process with other variables of its environment."""
    program = (
        f"import torch; from {__name__} import step; torch.save(step(torch.{dtype}), {str(file)!r})"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
    )
    found: dict[str, Tensor] = torch.load(file)
    return found


@pytest.mark.slow
def test_same_bits_however_threads_wait(tmp_path: Path):
    file = tmp_path / "step.pt"
    expected = elsewhere(file, "float32", OMP_WAIT_POLICY="ACTIVE")
    found = elsewhere(file, "float32", OMP_WAIT_POLICY="PASSIVE")
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


@pytest.mark.slow
def test_bfloat16_without_instructions_for_it(tmp_path: Path):
    """As far as oneDNN can be told: its kernels for AVX-512 alone."""
    found = elsewhere(tmp_path / "step.pt", "bfloat16", ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    expected, exact = step(torch.bfloat16), step(torch.float32)
    for name, x in expected.items():
        moved = (x - exact[name]).norm()  # by rounding to bfloat16
        assert (found[name] - x).norm() <= 2 * moved, name
