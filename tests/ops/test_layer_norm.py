"""Layer norm of tokens, and what stands around it, against torch's modules, the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.ops import cpp, layer_norm, native, residual_norm_linear
from common.ops.mamba_mixer_cpp import CHUNK

SHAPES = [(1, 1, 8), (2, CHUNK // 8 + 1, 8), (3, 5, 33), (1, 7, 1), (2, 3, 300), (1, 0, 4)]


@pytest.fixture(params=native.INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "_highest_isa", native.INSTRUCTION_SETS.index(request.param))


def make(channels: int, out: int) -> tuple[nn.LayerNorm, nn.Linear, Tensor]:
    torch.manual_seed(0)
    norm, scale = nn.LayerNorm(channels), torch.randn(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, nn.Linear(channels, out), scale


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(shape: tuple[int, ...], isa: None):
    norm, _, _ = make(shape[-1], 1)
    x = 100 + torch.randn(shape)  # a mean that a sum of squares would not survive
    x[..., :1, :] = 3.0  # no variance
    with torch.no_grad():
        y = layer_norm(x, norm)
    expected = norm.double()(x.double()).float()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wider", [False, True])
@pytest.mark.parametrize("residual", ["none", "plain", "scaled"])
def test_residual_norm_linear(shape: tuple[int, ...], wider: bool, residual: str, isa: None):
    norm, linear, scale = make(shape[-1], shape[-1] + 3 * wider)
    x, skip = torch.randn(shape), torch.randn(shape)
    total = {"none": x, "plain": x + skip, "scaled": x + scale * skip}[residual]
    arguments = {"none": (), "plain": (skip,), "scaled": (skip, scale)}[residual]
    before = skip.clone()
    with torch.no_grad():
        expected = linear(norm(total))
        y = residual_norm_linear(x, norm, linear, *arguments)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(skip, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_the_modules(dtype: torch.dtype):
    norm, linear, scale = make(6, 5)
    norm, linear = norm.to(dtype), linear.to(dtype)
    scale = scale.to(dtype).requires_grad_()
    x, skip = (torch.randn(2, 9, 6, dtype=dtype, requires_grad=True) for _ in "xs")
    variables = [x, skip, scale, *norm.parameters(), *linear.parameters()]
    y = residual_norm_linear(x + 0, norm, linear, skip, scale)
    expected = linear(norm(torch.addcmul(x, skip, scale)))
    found = torch.autograd.grad(y.square().sum(), variables)
    assert all(map(torch.equal, found, torch.autograd.grad(expected.square().sum(), variables)))


def test_other_layouts_dtypes_and_autocast_are_the_modules():
    norm, linear, scale = make(6, 5)
    x = torch.randn(2, 6, 9).mT
    tokens = x.contiguous()
    with torch.no_grad():
        assert torch.equal(layer_norm(x, norm), norm(x))
        expected = linear(norm(torch.addcmul(tokens, x, scale)))
        y = residual_norm_linear(tokens.clone(), norm, linear, x, scale)
        torch.testing.assert_close(y, expected)
        without_bias = nn.Linear(6, 5, bias=False)
        y = residual_norm_linear(tokens.clone(), norm, without_bias)
        assert torch.equal(y, without_bias(norm(tokens)))
        with torch.autocast("cpu"):
            assert residual_norm_linear(tokens, norm, linear).dtype == torch.bfloat16
        norm, linear = norm.double(), linear.double()
        y = residual_norm_linear(tokens.double(), norm, linear)
        assert torch.equal(y, linear(norm(tokens.double())))


def test_equal_bits_twice():
    norm, linear, scale = make(32, 32)
    x, skip = torch.randn(2, 1, 20_000, 32)
    with torch.no_grad():
        first, again = (
            residual_norm_linear(x.clone(), norm, linear, skip, scale) for _ in range(2)
        )
    assert torch.equal(first, again)
