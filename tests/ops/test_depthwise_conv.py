"""The depthwise convolution against torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.ops import depthwise_conv, depthwise_conv_shifted

CASES = [  # shape, kernel
    ((1, 1, 5, 6, 7), 3),
    ((2, 3, 9, 4, 33), 3),
    ((1, 2, 1, 1, 1), 3),
    ((3, 2, 4, 5, 17), 1),
    ((1, 4, 20, 30), 5),
    ((2, 1, 1, 2), 7),
    ((1, 1, 40, 3, 600), 3),
]


def make(shape: tuple[int, ...], kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, dy = torch.randn(2, *shape).unbind()
    weight = torch.randn(shape[1], 1, *[kernel] * (len(shape) - 2))
    return x.requires_grad_(), weight.requires_grad_(), dy


def reference(x: Tensor, weight: Tensor) -> Tensor:
    conv = F.conv3d if x.dim() == 5 else F.conv2d
    return conv(x.double(), weight.double(), padding=weight.shape[-1] // 2, groups=x.shape[1])


@pytest.mark.parametrize("function", [depthwise_conv, depthwise_conv_shifted])
@pytest.mark.parametrize(("shape", "kernel"), CASES)
def test_equals_float64(shape, kernel: int, function, isa: None):
    x, weight, dy = make(shape, kernel)
    y, exact = function(x, weight), reference(x, weight)
    assert y.dtype == torch.float32
    found = [y, *torch.autograd.grad(y, [x, weight], dy)]
    truth = [exact, *torch.autograd.grad(exact, [x, weight], dy.double())]
    for one, other in zip(found, truth, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 2e-7 * other.abs().max()  # rounded once


def test_equal_bits_whatever_the_threads():
    x, weight, dy = make((2, 3, 40, 30, 50), 3)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = depthwise_conv(x, weight)
        found.append([y, *torch.autograd.grad(y, [x, weight], dy)])
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_channels_last_images():
    x, weight, dy = make((2, 3, 6, 7, 8), 3)
    last = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y = depthwise_conv(last, weight)
    assert torch.equal(y, depthwise_conv(x, weight))
    y.backward(dy.contiguous(memory_format=torch.channels_last_3d))
    assert torch.equal(last.grad, torch.autograd.grad(depthwise_conv(x, weight), x, dy)[0])


def test_operator():
    x, weight, _ = make((2, 2, 4, 5), 3)
    torch.library.opcheck(torch.ops.monai_mamba.depthwise_conv_cpp.default, (x, weight))


@pytest.mark.parametrize(
    "weight",
    [
        (2, 1, 3, 3, 3),
        (3, 2, 3, 3, 3),
        (3, 1, 3, 3),
        (3, 1, 2, 2, 2),
        (3, 1, 3, 3, 5),
        (3, 1, 0, 0, 0),
    ],
)
def test_bad_weights(weight: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"weight has shape .*; allowed"):
        depthwise_conv(torch.ones(1, 3, 4, 4, 4), torch.ones(weight))
