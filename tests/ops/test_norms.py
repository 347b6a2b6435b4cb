"""Norms of maps against torch's in float64, contiguous, where torch's are right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.blocks import BatchNorm2d, BatchNorm3d, GroupNorm, InstanceNorm2d, InstanceNorm3d
from common.ops import cpp, norms

BUILD: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda c: GroupNorm(c // 2, c),
    "group-relu": lambda c: GroupNorm(c // 2, c, relu=True),
    "one-group": lambda c: GroupNorm(1, c, relu=True),
    "instance": lambda c: InstanceNorm3d(c),
    "batch": lambda c: BatchNorm3d(c),
}
# Channels that fill vectors and that do not, sites that fill a task and that do not.
SHAPES = [
    (1, 2, 3, 4, 5),
    (2, 24, 9, 4, 3),
    (3, 34, 2, 3, 4),
    (1, 6, 40, 3, 200),
    (2, 320, 5, 5, 5),
]


def make(kind: str, channels: int) -> nn.Module:
    torch.manual_seed(0)
    norm = BUILD[kind](channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def image(*shape: int) -> Tensor:
    """Noise, in each channel around a mean that a float32 sum of squares would not survive."""
    return 3 * torch.randn(shape) + 1000 * torch.randn(1, shape[1], *[1] * (len(shape) - 2))


def as_tokens(x: Tensor) -> Tensor:
    """x as a view of tokens (b, l, c): channels-last, and for one item of other strides."""
    return x.flatten(2).mT.contiguous().mT.unflatten(2, x.shape[2:])


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "tokens": as_tokens,
    "permuted": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
}


def run(norm: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """The output, gradients, and what else the norm has then."""
    x = x.detach().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(dy)
    grads = {f"d{name}": p.grad for name, p in norm.named_parameters()}
    buffers = {name: b.clone() for name, b in norm.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, **grads, **buffers}


def assert_equals_float64(norm: nn.Module, x: Tensor, dy: Tensor, tolerance: float) -> None:
    exact = run(copy.deepcopy(norm).double(), x.double().contiguous(), dy.double().contiguous())
    for name, found in run(copy.deepcopy(norm), x, dy).items():
        largest = exact[name].abs().max().clamp(min=1e-30)
        assert (found - exact[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", BUILD)
def test_channels_last_equals_float64(kind: str, shape: tuple[int, ...], isa: None):
    norm, dy = make(kind, shape[1]), torch.randn(shape)
    assert_equals_float64(norm, LAYOUTS["channels-last"](image(*shape)), dy, tolerance=2e-4)
    x = torch.randn(shape)  # around 0 to rounding
    assert_equals_float64(norm, LAYOUTS["channels-last"](x), dy, tolerance=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", BUILD)
def test_error_does_not_grow_with_the_map(kind: str, threads: int):
    """torch's channels-last kernels are off by 2e-5 (one thread: 1e-4) at this size."""
    torch.set_num_threads(threads)
    x = LAYOUTS["channels-last"](torch.randn(1, 16, 64, 64, 64) + 0.5)
    assert_equals_float64(make(kind, 16), x, torch.randn(x.shape), tolerance=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["group", "instance", "batch"])
def test_gradients_of_every_layout(
    kind: str, batch: int, x_layout: str, dy_layout: str, training: bool
):
    """torch's batch and instance norm of one item read some gradients in the wrong order."""
    norm = make(kind, 16).train(training)
    x, dy = torch.randn(2, batch, 16, 4, 5, 6).unbind()
    assert_equals_float64(norm, LAYOUTS[x_layout](x), LAYOUTS[dy_layout](dy), tolerance=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_float64_gradients_of_every_layout(layout: str):
    norm = make("instance", 4).double()
    x, dy = torch.randn(2, 1, 4, 3, 2, 5, dtype=torch.float64).unbind()
    expected = run(norm, x, dy)["dx"]
    found = run(norm, LAYOUTS[layout](x), LAYOUTS["channels-last"](dy))["dx"]
    torch.testing.assert_close(found, expected)


def test_batch_norm_of_slices():
    norm, reference = BatchNorm2d(6), nn.BatchNorm2d(6)
    x = torch.randn(2, 6, 7, 5).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        torch.testing.assert_close(norm(x), reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm.train()(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="4D"):
        norm(x[0])


def test_equal_bits_whatever_the_threads():
    norm, x = make("group-relu", 24), LAYOUTS["channels-last"](image(2, 24, 30, 20, 10))
    dy, found = torch.randn(x.shape), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(run(norm, x, dy))
    for name, first in found[0].items():
        assert all(torch.equal(first, other[name]) for other in found), name


@pytest.mark.parametrize("kind", ["group-relu", "instance", "batch"])
def test_nan_and_constant_maps(kind: str, isa: None):
    norm = make(kind, 8)
    x = torch.randn(2, 8, 4, 4, 4)
    x[0, 1, 2, 3, 0] = torch.nan
    y = norm(LAYOUTS["channels-last"](x))
    exact = copy.deepcopy(norm).double()(x.double())
    assert torch.equal(y.isnan(), exact.isnan())
    y = norm(torch.full((2, 8, 4, 4, 4), 7.0).contiguous(memory_format=torch.channels_last_3d))
    assert y.isfinite().all()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpp, "available", lambda: False)
    for kind in BUILD:
        x = LAYOUTS["channels-last"](torch.randn(1, 8, 32, 32, 32) + 0.5)
        assert_equals_float64(
            make(kind, 8), x, LAYOUTS["channels-last"](torch.randn(x.shape)), 2e-6
        )


@pytest.mark.parametrize("relu", [False, True])
def test_operator(relu: bool):
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((2, 30, 8), (8,), (8,)))
    operator = torch.ops.monai_mamba.group_norm_cpp.default
    torch.library.opcheck(operator, (x, weight, bias, 4, 1e-5, relu))


@pytest.mark.parametrize(
    ("x", "weight", "groups", "sentence"),
    [
        ((2, 3, 8), 7, 4, "weight has shape \\(7,\\); allowed is \\(8,\\)"),
        ((2, 3, 8), 8, 3, "groups is 3; allowed are divisors of 8"),
        ((2, 3, 8), 8, 0, "groups is 0; allowed are divisors of 8"),
        ((2, 0, 8), 8, 4, "x has shape \\(2, 0, 8\\)"),
        ((2, 8), 8, 4, "x has shape \\(2, 8\\)"),
    ],
)
def test_bad_arguments(x: tuple[int, ...], weight: int, groups: int, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        norms._group_norm_cpp(torch.ones(x), torch.ones(weight), torch.ones(8), groups, 1e-5, False)


def test_16_bit_maps_are_normalised_in_the_weights_precision():
    x = LAYOUTS["channels-last"](torch.randn(1, 8, 6, 6, 6))
    for kind in BUILD:
        norm = make(kind, 8)
        y = norm(x.bfloat16())
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, norm(x.bfloat16().float()))


@pytest.mark.parametrize(
    ("kind", "shape"), [(InstanceNorm2d, (2, 6, 5, 7)), (InstanceNorm3d, (1, 6, 4, 5, 3))]
)
def test_instance_norm_without_parameters(kind: type[nn.Module], shape: tuple[int, ...]):
    norm = kind(6, affine=False)
    assert not norm.state_dict()
    assert not list(norm.parameters())
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape)
    expected = torch.nn.functional.instance_norm(x)
    for given in (x, x.to(memory_format=layout)):
        torch.testing.assert_close(norm(given), expected)
        torch.testing.assert_close(torch.jit.script(norm)(given), expected)
    assert norm(x.bfloat16()).dtype == torch.float32
    assert norm.double()(x.double()).dtype == torch.float64
