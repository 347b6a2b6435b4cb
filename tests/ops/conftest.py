"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from common.ops import cpp, native


@pytest.fixture(autouse=True)
def _threads_and_poison() -> Iterator[None]:
    """Memory from torch.empty starts as NaN; thread count and instruction set are put back."""
    threads, isa = torch.get_num_threads(), cpp._highest_isa
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    cpp._highest_isa = isa


@pytest.fixture(params=native.INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> None:
    """Each instruction set, or the highest below it that this machine has."""
    cpp._highest_isa = native.INSTRUCTION_SETS.index(request.param)
