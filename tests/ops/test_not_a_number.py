"""NaN and infinity in any argument: the C++ operators lose none, and make none of their own, on any
instruction set. Compared is where the definition in float64 has finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from common.ops import (
    cpp,
    layer_norm,
    mamba_mixer,
    native,
    residual_norm_linear,
    selective_scan,
    selective_scan_2d,
)

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="needs a C++ compiler")

# Bits of NaN: Python's, those that processors and vectorised functions make, and rarer ones.
NAN = [0x7FC00000, 0xFFC00000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001]
INFINITIES = [0x7F800000, 0xFF800000]


def from_bits(bits: int) -> Tensor:
    return torch.tensor(bits - ((bits >> 31) << 32), dtype=torch.int32).view(torch.float32)


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def results(run: Callable[..., tuple[Tensor, ...]], xs: list[Tensor], outputs: int) -> list[Tensor]:
    """Outputs, and gradients of all but the last inputs, which are the outputs' gradients."""
    xs, grads = [x.detach().requires_grad_() for x in xs[:-outputs]], xs[-outputs:]
    ys = run(*xs)
    return [*ys, *torch.autograd.grad(ys, xs, grads)]


def lost_or_made(
    run: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    outputs: int,
    indices: Sequence[int] | None = None,
) -> list[str]:
    """Where run(*inputs, backend="cpp") is finite and the definition is not, or the other way.

    With each value somewhere in each input and output's gradient, on each instruction set.
    """
    wrong = []
    for index in range(len(inputs)) if indices is None else indices:
        x = inputs[index]
        place = torch.unravel_index(torch.tensor(x.numel() * 2 // 3), x.shape)
        for same in (NAN, *([bits] for bits in INFINITIES)):
            given = [x.clone(memory_format=torch.preserve_format) for x in inputs]
            given[index][place] = from_bits(same[0])
            exact = [x.double() for x in given]
            truth = results(lambda *x: run(*x, backend="reference"), exact, outputs)
            for bits in same:
                given[index][place] = from_bits(bits)
                for cpp._highest_isa in range(3):
                    found = results(lambda *x: run(*x, backend="cpp"), given, outputs)
                    wrong += [
                        f"{bits:x} in input {index}: output {output}"
                        for output, (a, b) in enumerate(zip(found, truth, strict=True))
                        if not torch.equal(a.isfinite(), b.isfinite())
                    ]
    return wrong


def scan(*x: Tensor, backend: str) -> tuple[Tensor, ...]:
    y = selective_scan(*x, delta_softplus=True, return_last_state=True, backend=backend)
    assert isinstance(y, tuple)
    return y


def ungated_scan(*x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return scan(*x[:6], None, x[6], backend=backend)


def scan_2d(*x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (selective_scan_2d(*x, True, backend=backend),)


def mixer(*x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (mamba_mixer(*x, backend=backend),)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_scan(n: int):
    b, d, l = 2, 20, 21  # noqa: E741
    shapes = ((b, d, l), (b, d, l), (d, n), (b, n, l), (b, n, l), (d,), (b, d, l), (d,))
    xs = normal(*shapes, (b, d, l), (b, d, n))
    xs[2] = -xs[2].exp()
    assert not lost_or_made(scan, xs, outputs=2)


def test_scan_of_one_state():
    b, d, l = 2, 16, 21  # noqa: E741
    u, delta, B, C, D, bias, dy, dlast = normal(
        *((b, l, d),) * 2, *((b, l, 1),) * 2, (d,), (d,), (b, l, d), (b, d, 1)
    )
    A = -torch.ones(d, 1)
    assert not lost_or_made(
        ungated_scan, [u.mT, delta.mT, A, B.mT, C.mT, D, bias, dy.mT, dlast], outputs=2
    )


def test_scan_in_chunks():
    b, d, l, n = 1, 3, 700, 16  # noqa: E741
    xs = normal(
        *((b, d, l),) * 2, (d, n), *((b, n, l),) * 2, (d,), (b, d, l), (d,), (b, d, l), (b, d, n)
    )
    xs[2] = -xs[2].exp()
    torch.set_num_threads(5)
    carried = [1, 2]  # delta and A, by which states are carried over chunks
    assert not lost_or_made(scan, xs, outputs=2, indices=carried)


@pytest.mark.parametrize("n", [1, 3])
def test_scan_2d(n: int):
    b, d, h, w = 2, 16, 3, 7
    maps = (b, 4, n, h, w)
    xs = normal((b, d, h, w), (b, 4, d, h, w), (4, d, n), maps, maps, (4, d), (4, d), (b, d, h, w))
    xs[2] = -xs[2].exp()
    xs[0] = xs[0].contiguous(memory_format=torch.channels_last)
    assert not lost_or_made(scan_2d, xs, outputs=1)


def test_mixer():
    b, l, c, d, n, r, k = 2, 21, 4, 20, 3, 2, 4  # noqa: E741
    xs = normal(
        *((b, l, c), (2 * d, c), (d, 1, k), (d,), (r + 2 * n, d)),
        *((d, r), (d,), (d, n), (d,), (5, d), (b, l, 5)),
    )
    xs = [x / 2 for x in xs]  # of moderate step sizes: those that round to 0 are NaN times infinity
    xs[7] = -xs[7].exp()
    assert not lost_or_made(mixer, xs, outputs=1)


def test_norms():
    norm, linear = nn.LayerNorm(20), nn.Linear(20, 5)
    for index in range(4):
        for bits in NAN + INFINITIES:
            x, skip, scale = normal((2, 3, 20), (2, 3, 20), (1,))
            weights = [x.clone() for x in (norm.weight.data, norm.bias.data)]
            (x, skip, scale, norm.weight.data)[index].view(-1)[-2:-1] = from_bits(bits)
            norm.double(), linear.double()
            with torch.no_grad():
                truth = [norm(x.double()), linear(norm(x.double() + scale * skip.double()))]
                norm.float(), linear.float()
                for cpp._highest_isa in range(3):
                    y = layer_norm(x, norm)
                    found = [y, residual_norm_linear(x.clone(), norm, linear, skip, scale)]
                    for a, b in zip(found, truth, strict=True):
                        assert torch.equal(a.isfinite(), b.isfinite()), (index, hex(bits))
            norm.weight.data, norm.bias.data = weights
