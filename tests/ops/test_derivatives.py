"""Derivatives that the operators have no formula for: forward mode, second order, torch.func.

Each is right or raises. What drops a tangent gives a derivative of zero, which nobody notices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from common.ops import (
    depthwise_conv,
    group_norm,
    instance_norm,
    layer_norm,
    mamba_mixer,
    native,
    residual_norm_linear,
    selective_scan,
    selective_scan_2d,
    triton_scan,
)

REFUSED = r"has a forward-mode derivative, which backend '(torch|cpp|triton)' cannot pass on"


class Operation(NamedTuple):
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[..., Tensor]

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        values = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }
        if "A" in values:
            values["A"] = -values["A"].exp()
        return tuple(values.values())


SCANS = {
    "scan": Operation(
        ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"),
        ((2, 4, 6), (2, 4, 6), (4, 3), (2, 3, 6), (2, 3, 6), (4,), (2, 4, 6), (4,)),
        lambda *x, backend: selective_scan(*x, True, backend=backend),
    ),
    "last state": Operation(
        ("u", "delta", "A", "B", "C"),
        ((2, 4, 6), (2, 4, 6), (4, 3), (2, 3, 6), (2, 3, 6)),
        lambda *x, backend: selective_scan(
            *x, delta_softplus=True, return_last_state=True, backend=backend
        )[1],
    ),
    "scan 2d": Operation(
        ("u", "delta", "A", "B", "C", "D", "delta_bias"),
        ((2, 4, 3, 2), (2, 4, 4, 3, 2), (4, 4, 3), *(((2, 4, 3, 3, 2),) * 2), (4, 4), (4, 4)),
        lambda *x, backend: selective_scan_2d(*x, True, backend=backend),
    ),
    "mixer": Operation(
        (
            *("x", "in_proj", "conv_weight", "conv_bias", "x_proj"),
            *("dt_proj", "dt_bias", "A", "D", "out_proj"),
        ),
        ((2, 6, 5), (8, 5), (4, 1, 4), (4,), (8, 4), (4, 2), (4,), (4, 3), (4,), (3, 4)),
        lambda *x, backend: mamba_mixer(*x, backend=backend),
    ),
}


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> nn.LayerNorm:
    norm = nn.LayerNorm(x.shape[-1], dtype=x.dtype)
    del norm.weight, norm.bias  # parameters cannot be replaced by what torch.func passes
    norm.weight, norm.bias = weight, bias
    return norm


_LINEAR = nn.Linear(5, 3).requires_grad_(False)
LINEARS = {torch.float32: _LINEAR, torch.float64: copy.deepcopy(_LINEAR).double()}


def _residual(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor, scale: Tensor) -> Tensor:
    norm = _norm(x, weight, bias)
    return residual_norm_linear(x.clone(), norm, LINEARS[x.dtype], skip, scale)


NORMS = {
    "layer norm": Operation(
        ("x", "weight", "bias"),
        ((2, 6, 5), (5,), (5,)),
        lambda x, weight, bias: layer_norm(x, _norm(x, weight, bias)),
    ),
    "residual": Operation(
        ("x", "weight", "bias", "skip", "scale"),
        ((2, 6, 5), (5,), (5,), (2, 6, 5), (1,)),
        _residual,
    ),
    "group norm": Operation(
        ("x", "weight", "bias"),
        ((2, 3, 5, 4), (4,), (4,)),
        lambda x, weight, bias: group_norm(x.movedim(-1, 1), 2, weight, bias, 1e-5, relu=True),
    ),
    "instance norm": Operation(
        ("x", "weight", "bias"),
        ((2, 3, 5, 4), (4,), (4,)),
        lambda x, weight, bias: instance_norm(x.movedim(-1, 1), weight, bias, 1e-5),
    ),
    "depthwise convolution": Operation(
        ("x", "weight"), ((2, 3, 5, 4), (3, 1, 3, 3)), depthwise_conv
    ),
}


# The maps' scan has an operator of its own in C++ alone.
CASES = [
    *((name, backend) for backend in ("torch", "cpp") for name in SCANS),
    *((name, "triton") for name in ("scan", "mixer")),
    ("scan", "auto"),
]
_MISSING = {"cpp": native.why_unavailable(), "triton": triton_scan.why_unavailable()}
CASES = [(name, backend) for name, backend in CASES if _MISSING.get(backend) is None]


def dual(f: Callable[..., Tensor], xs: tuple[Tensor, ...], ts: tuple[Tensor, ...]) -> Tensor:
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(x, t) for x, t in zip(xs, ts, strict=True))
        return forward_ad.unpack_dual(f(*duals)).tangent


def jvp(f: Callable[..., Tensor], xs: tuple[Tensor, ...], ts: tuple[Tensor, ...]) -> Tensor:
    return torch.func.jvp(f, xs, ts)[1]


def jacfwd(f: Callable[..., Tensor], xs: tuple[Tensor, ...], ts: tuple[Tensor, ...]) -> Tensor:
    along = torch.func.jacfwd(lambda step: f(*(x + step * t for x, t in zip(xs, ts, strict=True))))
    return along(torch.zeros((), dtype=xs[0].dtype))


def of_items(f: Callable[..., Tensor], xs: tuple[Tensor, ...], ts: tuple[Tensor, ...]) -> Tensor:
    """jvp of a vmap."""
    items = (tuple(x.unsqueeze(0) for x in given) for given in (xs, ts))
    return torch.func.jvp(torch.func.vmap(f), *items)[1].squeeze(0)


FORWARD = (dual, jvp, jacfwd, of_items)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("forward", FORWARD)
@pytest.mark.parametrize("name", SCANS)
def test_forward_mode_is_right_in_the_reference(name, forward, grad):
    operation = SCANS[name]
    xs = operation.inputs(torch.float64)

    def run(*xs: Tensor) -> Tensor:
        return operation.run(*xs, backend="reference")

    ts = tuple(torch.cos(x) for x in xs)
    step = 1e-6
    ends = (run(*(x + e * t for x, t in zip(xs, ts, strict=True))) for e in (step, -step))
    expected = torch.sub(*ends) / (2 * step)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(forward(run, xs, ts), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("forward", FORWARD)
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_forward_mode_is_refused(name, backend, forward, grad):
    operation = SCANS[name]
    xs = operation.inputs()
    with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match=REFUSED):
        forward(lambda *xs: operation.run(*xs, backend=backend), xs, xs)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_tangent_of_any_argument_is_refused(name, backend):
    operation = SCANS[name]
    xs = operation.inputs()
    for i, x in enumerate(xs):
        with forward_ad.dual_level():
            given = [*xs[:i], forward_ad.make_dual(x, x), *xs[i + 1 :]]
            if operation.names[i] == "out_proj" and backend == "torch":
                y = operation.run(*given, backend=backend)  # after the scan, by torch alone
                torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, y)
                continue
            with pytest.raises(NotImplementedError, match=REFUSED):
                operation.run(*given, backend=backend)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_tangent_of_an_output_gradient_is_refused(name, backend):
    operation = SCANS[name]
    xs = tuple(x.requires_grad_() for x in operation.inputs())
    y = operation.run(*xs, backend=backend)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=f"d(y|last|out) {REFUSED}"),
    ):
        torch.autograd.grad(y, xs, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_second_derivatives_are_refused(name, backend):
    operation = SCANS[name]
    xs = tuple(x.requires_grad_() for x in operation.inputs())
    y = operation.run(*xs, backend=backend)
    first = torch.autograd.grad(y.square().sum(), xs, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(first[0].sum(), xs)


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_right(name, backend):
    operation = SCANS[name]
    xs = operation.inputs()
    found = torch.func.vmap(lambda *xs: operation.run(*xs, backend=backend))(
        *(torch.stack([2 * x, x]) for x in xs)
    )
    torch.testing.assert_close(found[1], operation.run(*xs, backend=backend))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_torch_func_has_no_derivatives(name, backend):
    operation = SCANS[name]
    xs = operation.inputs()

    def loss(x: Tensor) -> Tensor:
        return operation.run(x, *xs[1:], backend=backend).sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match="Function with functorch transforms"):
            transform(loss)(xs[0])
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.hessian(loss)(xs[0])
    with pytest.raises(NotImplementedError, match=REFUSED):  # x is not of the inner transform
        jvp(lambda x: torch.func.grad(lambda w: w * loss(x))(torch.ones(())), xs[:1], xs[:1])


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_inside_a_dual_level_what_has_no_tangent_is_served(name, backend):
    operation = SCANS[name]
    xs = operation.inputs()
    expected = operation.run(*xs, backend=backend)
    with forward_ad.dual_level():
        assert torch.equal(operation.run(*xs, backend=backend), expected)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("forward", FORWARD)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_forward_mode_of_norms_is_right(name, forward, grad):
    operation = NORMS[name]
    xs = operation.inputs()
    ts = tuple(torch.cos(x) for x in xs)
    expected = jvp(
        operation.run, operation.inputs(torch.float64), tuple(t.double() for t in ts)
    ).float()
    with torch.set_grad_enabled(grad):
        found = forward(operation.run, xs, ts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_norms_is_right(name):
    operation = NORMS[name]
    xs = operation.inputs()
    with torch.no_grad():
        found = torch.func.vmap(operation.run)(*(torch.stack([2 * x, x]) for x in xs))
        torch.testing.assert_close(found[1], operation.run(*xs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["group norm", "instance norm", "depthwise convolution"])
def test_second_derivatives_in_cpp_are_refused(name):
    operation = NORMS[name]
    xs = tuple(x.requires_grad_() for x in operation.inputs())
    first = torch.autograd.grad(operation.run(*xs).square().sum(), xs, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(sum(x.sum() for x in first), xs)
