"""The scan in four orders against the one-dimensional reference over explicit lists of sites."""

import pytest
import torch
from torch import Tensor

from common.ops import selective_scan, selective_scan_2d


def arguments(height: int, width: int, d: int = 3, n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    grid = (height, width)
    u, delta, A = random(2, d, *grid), random(2, 4, d, *grid), -random(4, d, n).exp()
    B, C = random(2, 4, n, *grid), random(2, 4, n, *grid)
    return [u, delta, A, B, C, random(4, d), random(4, d)]


def over_sites(u, delta, A, B, C, D, bias) -> Tensor:
    height, width = u.shape[2:]
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    total = torch.zeros_like(u)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        i, j = (list(axis) for axis in zip(*order, strict=True))
        of_order = (x[:, k][..., i, j] for x in (delta, B, C))
        delta_k, B_k, C_k = of_order
        y = selective_scan(
            u[..., i, j], delta_k, A[k], B_k, C_k, D[k], None, bias[k], True, backend="reference"
        )
        total[..., i, j] += y
    return total


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (4, 5), (6, 3)])
def test_equals_a_scan_over_listed_sites(shape):
    inputs = [x.requires_grad_() for x in arguments(*shape)]
    expected = over_sites(*inputs)
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    y = selective_scan_2d(*inputs, True)
    grads = torch.autograd.grad((y * weight).sum(), inputs)
    for got, wanted in zip((y, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
