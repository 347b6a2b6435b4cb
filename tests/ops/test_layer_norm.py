"""Layer norm of tokens, and what stands around it, against torch's modules, the definition."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import quantize_dynamic

from common.ops import layer_norm, residual_norm_linear

CHUNK = sys.modules["common.ops.layer_norm"].CHUNK
SHAPES = [(1, 1, 8), (2, CHUNK // 8 + 1, 8), (3, 5, 33), (1, 7, 1), (2, 3, 300), (1, 0, 4)]


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


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_modules_of_another_kind_do_their_own_work():
    norm, linear, _ = make(6, 5)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Shifted(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 1 + super().forward(x)

    doubled, shifted = Doubled(6, 5), Shifted(6)
    quantised = quantize_dynamic(nn.Sequential(linear), {nn.Linear})[0]
    assert isinstance(quantised, DynamicLinear)
    x = torch.randn(2, 9, 6)
    with torch.no_grad():
        assert torch.equal(layer_norm(x, shifted), shifted(x))
        for other in (doubled, quantised):
            assert torch.equal(residual_norm_linear(x.clone(), norm, other), other(norm(x)))


def test_equal_bits_twice():
    norm, linear, scale = make(32, 32)
    x, skip = torch.randn(2, 1, 20_000, 32)
    with torch.no_grad():
        first, again = (
            residual_norm_linear(x.clone(), norm, linear, skip, scale) for _ in range(2)
        )
    assert torch.equal(first, again)


def test_fake_tensors_and_those_of_monai():
    norm, linear, scale = make(8, 5)
    x, skip = torch.randn(2, 1, 9, 8)
    with torch.no_grad():
        expected = residual_norm_linear(x.clone(), norm, linear, skip, scale)
        image = residual_norm_linear(MetaTensor(x.clone()), norm, linear, MetaTensor(skip), scale)
        assert torch.equal(torch.as_tensor(image), expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x)
            assert layer_norm(fake, norm).shape == x.shape
            assert residual_norm_linear(fake, norm, linear).shape == expected.shape


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("width", "message"),
    [
        (4, r"norm has normalized_shape \(4,\); allowed is \(5,\), x's last axis"),
        (6, r"norm has normalized_shape \(6,\); allowed is \(5,\)"),
        (3000, r"norm has normalized_shape \(3000,\); allowed is \(5,\)"),
        ((3, 5), r"norm has normalized_shape \(3, 5\); allowed is \(5,\)"),
    ],
)
def test_norm_of_another_width_is_refused(width: int | tuple[int, ...], message: str, grad: bool):
    x, norm = torch.randn(2, 3, 5), nn.LayerNorm(width)
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=message):
            layer_norm(x, norm)
        with pytest.raises(ValueError, match=message):
            residual_norm_linear(x, norm, nn.Linear(5, 5))
        with pytest.raises(ValueError, match=r"allowed is \(\)"):
            layer_norm(torch.tensor(1.0), norm)


def test_weight_that_does_not_fit_its_norm_is_left_to_torch():
    norm = nn.LayerNorm(5)
    norm.weight = nn.Parameter(torch.ones(4))
    with torch.no_grad(), pytest.raises(RuntimeError, match="weight to be of same shape"):
        layer_norm(torch.randn(2, 3, 5), norm)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("skip", "scale", "message"),
    [
        ((2, 2, 5), None, r"skip has shape \(2, 2, 5\); allowed is x's, \(2, 3, 5\)"),
        ((3, 2, 5), None, r"skip has shape \(3, 2, 5\)"),
        ((5,), None, r"skip has shape \(5,\)"),
        ((2, 3, 5), (5,), r"scale has shape \(5,\); allowed is \(1,\)"),
        ((2, 3, 5), (0,), r"scale has shape \(0,\)"),
        ((2, 3, 5), (), r"scale has shape \(\)"),
        (None, (1,), r"scale is given without skip"),
    ],
)
def test_residual_of_another_shape_is_refused(skip, scale, message: str, grad: bool):
    norm, linear, _ = make(5, 5)
    skip, scale = (None if shape is None else torch.randn(shape) for shape in (skip, scale))
    x = torch.randn(2, 3, 5)
    before = x.clone()
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
        residual_norm_linear(x, norm, linear, skip, scale)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="linear has in_features 4"):
        residual_norm_linear(x, norm, nn.Linear(4, 5))
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
@pytest.mark.parametrize("out", [0, 5])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_tensors(shape: tuple[int, ...], out: int):
    norm, linear = nn.LayerNorm(shape[-1]), nn.Linear(shape[-1], out)
    with torch.no_grad():
        assert layer_norm(torch.randn(shape), norm).shape == shape
        y = residual_norm_linear(torch.randn(shape), norm, linear, torch.randn(shape))
    assert torch.equal(y, linear(torch.zeros(shape)))
