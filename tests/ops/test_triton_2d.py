"""The scan in four orders in Triton against the composition in float64: on a GPU, else in Triton's
interpreter."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from common.ops import mamba_ssm_scan, selective_scan_2d, triton_scan, triton_scan_2d

from .test_cpp import distance
from .test_selective_scan_2d import NAMES, arguments, as_in_the_block
from .test_triton import DEVICE, compile_for_hopper, needs_gpu, needs_triton

scan_module = sys.modules["common.ops.selective_scan_2d"]
operator = triton_scan_2d._selective_scan_2d_triton


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles and blocks of channels in maps that the interpreter walks in a second."""
    if DEVICE == "cpu":
        for name, value in (("TOKENS", 2), ("SEGMENTS", 4), ("CHANNELS", 2), ("ELEMENTS", 8)):
            monkeypatch.setattr(triton_scan_2d, name, value)


def on_device(*shape: int, **sizes: int) -> list[Tensor]:
    return [x.to(DEVICE) for x in as_in_the_block(arguments(*shape, **sizes))]


def run(inputs, backend, dtype=None, softplus=True) -> dict[str, Tensor]:
    """The output, and gradients for a fixed random gradient of it."""
    xs = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    y = selective_scan_2d(*xs, softplus, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    given = {name: x for name, x in zip(NAMES, xs, strict=True) if x is not None}
    grads = torch.autograd.grad(y, list(given.values()), dy)
    named = {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
    return {"y": y.detach(), **named}


def assert_equals_float64(inputs, softplus=True, tolerance=1e-5) -> None:
    exact = run(inputs, "torch", torch.float64, softplus)
    for name, x in run(inputs, "triton", softplus=softplus).items():
        assert x.isfinite().all(), name
        assert distance(x, exact[name]) <= tolerance, name


@needs_triton
@pytest.mark.parametrize(
    ("shape", "d", "n", "batch"),
    [
        ((1, 1), 3, 1, 2),
        ((1, 7), 2, 3, 1),
        ((3, 1), 1, 16, 1),
        ((2, 3), 3, 1, 2),
        ((5, 7), 2, 1, 1),
        ((3, 4), 1, 3, 1),
    ],
)
def test_equals_float64(small_tiles, shape, d, n, batch):
    assert_equals_float64(on_device(*shape, d=d, n=n, batch=batch))


@needs_triton
def test_without_options(small_tiles):
    inputs = on_device(3, 2, d=2, n=1, batch=1)
    inputs[1] = inputs[1].abs()  # so that the recurrence is stable
    assert_equals_float64([*inputs[:5], None, None], softplus=False)


@needs_triton
def test_any_strides(small_tiles):
    channels_apart = [x.float().to(DEVICE) for x in arguments(1, 3, d=3, n=1, batch=1)]
    assert_equals_float64(channels_apart)
    every_second = [
        x.repeat_interleave(2, -1)[..., ::2] for x in on_device(2, 1, d=2, n=2, batch=1)
    ]
    assert_equals_float64(every_second)
    y = selective_scan_2d(*(x.requires_grad_() for x in every_second), True, backend="triton")
    y.sum().backward()  # an expanded gradient: all strides 0


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(small_tiles, dtype):
    inputs = on_device(3, 2, d=2, n=1, batch=1)
    inputs = [x if x is inputs[2] else x.to(dtype) for x in inputs]
    exact = run(inputs, "torch", torch.float64)
    for name, x in run(inputs, "triton").items():
        assert x.dtype == (torch.float32 if name == "dA" else dtype), name
        assert distance(x, exact[name]) < torch.finfo(dtype).eps, name


@needs_triton
def test_same_bits_twice(small_tiles):
    inputs = on_device(2, 3, d=3, n=1, batch=1)
    first, second = (run(inputs, "triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_triton
@pytest.mark.parametrize(("layout", "options"), [("last", True), ("first", False)])
def test_operator(small_tiles, layout, options):
    inputs = on_device(1, 2, d=2, n=1, batch=1)
    if layout == "first":
        inputs = [x.contiguous() for x in inputs]
    inputs = inputs if options else [*inputs[:5], None, None]
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    torch.library.opcheck(operator, (*inputs, True, True))


@needs_triton
def test_gradient_where_forward_saved_nothing(small_tiles):
    inputs = [x.requires_grad_() for x in on_device(2, 3, d=2, n=1, batch=1)]
    with torch.no_grad():
        _, saved = operator(*inputs, True, False)
    assert saved.numel() == 0
    y, z = (operator(*inputs, True, save)[0] for save in (False, True))
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (y, z)), strict=True):
        assert torch.equal(a, b)


@needs_triton
@pytest.mark.parametrize("needed", [True, False])
def test_saves_states_where_a_gradient_is_needed(small_tiles, monkeypatch, needed):
    asked = []

    def spy(*args):
        asked.append(args[-1])
        return operator(*args)

    monkeypatch.setattr(triton_scan_2d, "_selective_scan_2d_triton", spy)
    inputs = on_device(1, 1, d=1, n=1, batch=1)
    inputs[2].requires_grad_()
    with torch.set_grad_enabled(needed):
        selective_scan_2d(*inputs, True, backend="triton")
    assert asked == [needed]


@needs_triton
def test_compiled_in_one_graph(small_tiles):
    inputs = [x.requires_grad_() for x in on_device(2, 2, d=2, n=1, batch=1)]

    def scan(*args: Tensor) -> Tensor:
        return selective_scan_2d(*args, delta_softplus=True, backend="triton").square()

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(
        *(torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, scan)), strict=True
    ):
        # A GPU's kernels are compiled for the strides, which torch.compile may choose.
        assert distance(got, wanted) < 1e-5


def test_auto_takes_it_on_cuda_beside_mamba_ssm(monkeypatch):
    taken = []
    for module in (triton_scan, mamba_ssm_scan):
        monkeypatch.setattr(module, "why_unavailable", lambda: None)
    monkeypatch.setattr(scan_module, "selective_scan_2d_triton", lambda *args: taken.append(args))
    with FakeTensorMode():
        u, A = torch.empty(8, 128, 2, 2, device="cuda"), torch.empty(4, 128, 1, device="cuda")
        B = torch.empty(8, 4, 1, 2, 2, device="cuda")
        selective_scan_2d(u, torch.empty(8, 4, 128, 2, 2, device="cuda"), A, B, B)
    assert len(taken) == 1


def test_what_it_cannot_serve(monkeypatch):
    inputs = [x.float() for x in arguments(1, 2)]
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda: None)
    monkeypatch.setattr(triton_scan, "_interpreted", lambda: True)
    with pytest.raises(ValueError, match=r"u has dtype torch\.float64; allowed .* float32"):
        selective_scan_2d(*(x.double() for x in inputs), True, backend="triton")
    with pytest.raises(ValueError, match=r"delta is on meta; allowed .* one cpu device"):
        selective_scan_2d(inputs[0], inputs[1].to("meta"), *inputs[2:], True, backend="triton")


@needs_triton
@needs_gpu
@pytest.mark.parametrize(
    ("side", "d", "n", "batch"),
    [
        (56, 192, 1, 4),  # the levels of LCMambaNet on pictures of 224 x 224
        (28, 384, 1, 4),
        (14, 768, 1, 4),
        (7, 1536, 1, 4),
        (64, 192, 1, 4),  # and of 256 x 256
        (8, 1536, 1, 4),
        (37, 100, 1, 2),
        (32, 96, 16, 2),
        (12, 40, 64, 1),
    ],
)
def test_sizes_of_networks(side, d, n, batch):
    assert_equals_float64(on_device(side, side, d=d, n=n, batch=batch))


@needs_triton
@needs_gpu
def test_one_line_of_many_tokens():
    assert_equals_float64(on_device(1, 20_000, d=32, n=1, batch=1))
    assert_equals_float64(on_device(3000, 5, d=32, n=1, batch=1))


@needs_triton
@needs_gpu
def test_offsets_beyond_32_bits():
    d, side = 1056, 1448  # 2.2e9 elements
    u = torch.randn(1, side, side, d, device="cuda", dtype=torch.bfloat16).movedim(-1, 1)
    delta = u.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    A, B = -torch.ones(4, d, 1, device="cuda"), torch.randn(1, 4, 1, side, side, device="cuda")
    few = slice(d - 3, d)
    with torch.no_grad():
        y = selective_scan_2d(u, delta, A, B, B, delta_softplus=True, backend="triton")[:, few]
        args = (u[:, few], delta[:, :, few], A[:, few], B, B)
        expected = selective_scan_2d(*args, delta_softplus=True, backend="torch")
    assert distance(y, expected) < 1e-2


SCAN = """
from common.ops import triton_scan_2d
n, dtype, layout = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
u = torch.zeros(2, 14, 15, 48, dtype=dtype).movedim(-1, 1)
delta = torch.zeros(4, 2, 14, 15, 48, dtype=dtype).permute(1, 0, 4, 2, 3)
if layout == "first":
    u, delta = u.contiguous(), delta.contiguous()
B = torch.zeros(2, 14, 15, 4, 3 + n)[..., 3:].permute(0, 3, 4, 1, 2)
A, D = torch.zeros(4, 48, n), torch.zeros(4, 48)
y, _ = triton_scan_2d._selective_scan_2d_triton(
    u.requires_grad_(), delta, A, B, B, D, D, True, True
)
torch.autograd.grad(y, u, torch.zeros_like(y))
assert set(compiled) == {"forward", "backward"}, compiled
assert all(compiled.values())
"""


@needs_triton
@pytest.mark.parametrize(
    ("n", "dtype", "layout"),
    [
        (1, "float32", "last"),
        pytest.param(1, "bfloat16", "first", marks=pytest.mark.slow),
        pytest.param(3, "float16", "last", marks=pytest.mark.slow),
        pytest.param(16, "float32", "last", marks=pytest.mark.slow),
        pytest.param(64, "float32", "first", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_hopper(tmp_path, n, dtype, layout):
    compile_for_hopper(tmp_path, SCAN, n, dtype, layout)
