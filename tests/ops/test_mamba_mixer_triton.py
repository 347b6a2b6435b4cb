"""The mixer in Triton against float64: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import copy
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.blocks import Mamba
from common.ops import mamba_mixer, triton_conv, triton_scan

from . import test_triton
from .test_cpp import distance
from .test_mamba_mixer import NAMES, make_inputs, run
from .test_triton import DEVICE, compile_for_hopper, needs_gpu, needs_triton

mixer_module = sys.modules["common.ops.mamba_mixer_triton"]
SMALL = {"length": 19, "c": 3, "d": 5, "n": 3, "rank": 2, "taps": 3, "out": 4}


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch):
    """Several spans and chunks in sequences that the interpreter walks in a second."""
    if DEVICE == "cuda":
        return
    monkeypatch.setattr(triton_conv, "SPAN", 8)
    monkeypatch.setattr(triton_conv, "ROWS", 4)
    monkeypatch.setattr(triton_scan, "SHORTEST_CHUNK", 8)


def on_device(**case) -> list[Tensor]:
    return [x.to(DEVICE) for x in make_inputs(**SMALL | case)]


def assert_equals_float64(inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    truth = run(inputs, "torch", torch.float64)
    for name, x in run(inputs, "triton").items():
        assert x.isfinite().all(), name
        assert distance(x, truth[name]) <= tolerance, name


def convolution(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dx, dweight, dbias in float64."""
    xs = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    padded = F.pad(xs[0], [weight.shape[2] - 1, 0])
    y = F.silu(F.conv1d(padded, xs[1], xs[2], groups=weight.shape[0]))
    return [y.detach(), *torch.autograd.grad(y, xs, dy.double())]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A (b, d, l) in another place: as a part of tokens twice as wide, or token by token."""
    batch, d, length = x.shape
    if layout == "part of wide tokens":
        wide = x.new_full((batch, length, 2 * d), torch.nan)
        return wide[..., d:].mT.copy_(x)
    if layout == "no axis dense":
        return x.new_full((batch, d, length, 2), torch.nan)[..., 0].copy_(x)
    return x.contiguous()


@needs_triton
@pytest.mark.parametrize(
    ("taps", "length", "d", "layout"),
    [
        (1, 9, 3, "part of wide tokens"),
        (2, 1, 3, "channel by channel"),
        (3, 7, 3, "no axis dense"),
        (4, 19, 70, "part of wide tokens"),
        (7, 3, 1, "part of wide tokens"),
        (7, 17, 5, "channel by channel"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_equals_float64(taps, length, d, layout, dtype):
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 2, d, length, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(d, 1, taps, generator=generator).to(DEVICE)
    bias = torch.randn(d, generator=generator).to(DEVICE)
    x, dy, y, dx = (laid_out(tensor, layout) for tensor in (x, dy, x + torch.nan, x + torch.nan))
    triton_conv.causal_conv(x, weight, bias, y)
    grads = triton_conv.causal_conv_backward(dy, x, weight, bias, dx)
    for found, truth in zip((y, dx, *grads), convolution(x, weight, bias, dy), strict=True):
        assert distance(found, truth) < 10 * torch.finfo(found.dtype).eps


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        {"length": 1},
        {"length": 2, "batch": 2, "taps": 4},
        {"length": 17, "taps": 1, "n": 1, "rank": 1},
        {"length": 9, "batch": 2, "taps": 2},
        {"length": 9, "d": 33, "taps": 7},
        {"length": 17, "n": 16, "taps": 4},
    ],
    ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()),
)
def test_equals_float64(case):
    assert_equals_float64(on_device(**case))


@needs_triton
def test_tokens_in_any_layout():
    inputs = on_device(batch=2, length=5)
    inputs[0] = inputs[0].mT.contiguous().mT
    for weight in (1, 2, 4, 5, 7, 9):
        inputs[weight] = inputs[weight].repeat_interleave(2, -1)[..., ::2]
    assert_equals_float64(inputs)


@needs_triton
def test_expanded_gradient():
    xs = [x.requires_grad_() for x in on_device(length=3)]
    mamba_mixer(*xs, backend="triton").sum().backward()  # all strides 0
    assert all(x.grad.isfinite().all() for x in xs)


@needs_triton
def test_same_bits_twice():
    inputs = on_device(length=6, d=33)
    first, second = (run(inputs, "triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_triton
def test_scan_writes_where_it_has_read():
    """The mixer's scan: y over u, gradients over what they are of, the same bits."""
    size = {"group_channels": 5, "length": 17, "n": 3}
    if DEVICE == "cuda":
        size = {"group_channels": 96, "length": 20_001, "n": 16}
    u, delta, A, B, C, D, z, bias = test_triton.on_device(batch=1, **size)
    y, last, saved = triton_scan.scan_forward(u, delta, A, B, C, D, z, bias, True, True)
    own = u.mT.clone().mT
    triton_scan.scan_forward(own, delta, A, B, C, D, z, bias, True, False, y=own)
    assert torch.equal(own, y)

    into = [torch.empty_like(x) for x in (u, delta, z)]
    arguments = (u, delta, A, B, C, D, z, bias, True)
    grads = triton_scan.scan_backward(y, last, saved, *arguments, *into)
    grads = [grad.clone() for grad in grads]
    arguments = (u, delta, A, B, C, D, z, bias, True, u, delta, z)
    for found, expected in zip(
        triton_scan.scan_backward(y, last, saved, *arguments), grads, strict=True
    ):
        assert torch.equal(found, expected)


@needs_triton
def test_gradients_of_some_inputs():
    inputs = on_device(length=3)
    every = run(inputs, "triton")
    for wanted in ({"x"}, {"out_proj"}, {"conv_weight", "dt_bias"}):
        xs = [
            x.detach().requires_grad_(name in wanted) for name, x in zip(NAMES, inputs, strict=True)
        ]
        y = mamba_mixer(*xs, backend="triton")
        generator = torch.Generator().manual_seed(1)
        y.backward(torch.randn(y.shape, generator=generator).to(y))
        for name, x in zip(NAMES, xs, strict=True):
            assert (x.grad is not None) == (name in wanted), name
            assert x.grad is None or torch.equal(x.grad, every[f"d{name}"]), name


@needs_triton
def test_operator():
    inputs = [x.requires_grad_() for x in on_device(length=2, d=2, n=1, rank=1)]
    torch.library.opcheck(mixer_module._mamba_mixer_triton, inputs)


@needs_triton
def test_compiled_equals_eager():
    inputs = [x.requires_grad_() for x in on_device(length=3)]
    compiled = torch.compile(mamba_mixer, fullgraph=True, backend="aot_eager")
    found, expected = (f(*inputs, backend="triton") for f in (compiled, mamba_mixer))
    # A GPU's kernels are compiled for the strides, which torch.compile may choose.
    assert distance(found.detach(), expected.detach()) < 1e-5
    for a, b in zip(
        *(torch.autograd.grad(y.sum(), inputs) for y in (found, expected)), strict=True
    ):
        assert distance(a, b) < 1e-5


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("of_weights", [None, torch.float32])
def test_half_tokens(dtype, of_weights):
    """Within 4 eps of float64; Triton's interpreter cuts bfloat16 off where a GPU rounds."""
    inputs = on_device(length=11)
    inputs = [x.to(dtype if i == 0 else of_weights or dtype) for i, x in enumerate(inputs)]
    truth = run(inputs, "torch", torch.float64)
    xs = [x.requires_grad_() for x in inputs]
    y = mamba_mixer(*xs, backend="triton")
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator).to(y))
    assert y.dtype == dtype
    assert distance(y.detach(), truth["y"]) < 4 * torch.finfo(dtype).eps
    for name, x in zip(NAMES, xs, strict=True):
        assert x.grad.dtype == x.dtype, name
        assert distance(x.grad, truth[f"d{name}"]) < 4 * torch.finfo(dtype).eps, name


@needs_triton
def test_float16_holds_large_activations_where_tokens_are_float32():
    """So in Mamba under autocast to float16."""
    inputs = on_device(length=9)
    inputs[1] *= 1e6
    inputs[4] /= 1e6
    with torch.autocast(DEVICE, dtype=torch.float16):
        found = run(inputs, "triton")
    truth = run(inputs, "torch", torch.float64)
    assert all(distance(x, truth[name]) < 1e-5 for name, x in found.items())


@needs_triton
def test_autocast_does_not_reach_into_it():
    inputs = on_device(length=3)
    expected = run(inputs, "triton")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(DEVICE, dtype=dtype):
            found = run(inputs, "triton")
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@needs_triton
def test_keeps_its_arguments_alone():
    inputs = [x.requires_grad_() for x in on_device(length=3)]
    kept = []
    with saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda _: None):
        mamba_mixer(*inputs, backend="triton")
    assert set(kept) == {x.data_ptr() for x in inputs}


def test_what_it_cannot_serve(monkeypatch):
    inputs = make_inputs(length=2)
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda: None)
    monkeypatch.setattr(triton_scan, "_interpreted", lambda: True)
    with pytest.raises(ValueError, match=r"x has dtype torch\.float64; allowed .* float32"):
        mamba_mixer(*(x.double() for x in inputs), backend="triton")
    with pytest.raises(ValueError, match=r"D is on meta; allowed .* one cpu device"):
        mamba_mixer(*inputs[:8], inputs[8].to("meta"), inputs[9], backend="triton")
    with forward_ad.dual_level():
        inputs[7] = forward_ad.make_dual(inputs[7], torch.ones_like(inputs[7]))
        with pytest.raises(NotImplementedError, match=r"A has a forward-mode .* 'triton'"):
            mamba_mixer(*inputs, backend="triton")
    monkeypatch.setattr(triton_scan, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"x is on cpu; allowed .* one cuda device"):
        mamba_mixer(*inputs, backend="triton")


class Live(TorchDispatchMode):
    """Bytes of the tensors that the operations in it have made, and the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        made = func(*args, **kwargs or {})
        for x in tree_leaves(made):
            storage = x.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.seen:
                self._add(storage)
        return made

    def _add(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_) -> None:
            del self.seen[key]
            self.now -= size

        self.seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)


class NoKernel:
    def __getitem__(self, grid):
        return lambda *args, **options: None


@pytest.mark.parametrize(
    ("c", "dtype", "forward", "backward"),
    [
        (32, torch.float32, 9.3, 17.8),
        (64, torch.float32, 8.7, 17.0),
        (32, torch.bfloat16, 9.4, 25.0),  # states and parts of sums are float32
    ],
)
def test_memory(monkeypatch, c, dtype, forward, backward):
    """At the peaks, in multiples of x, which is half as wide as u.

    xz, u and delta, in the scan's gradient y's too and half as many states again as xz has numbers.
    """
    kernels = dict.fromkeys(
        ("forward", "backward", "chunk_states", "chunk_adjoints", "carry"), NoKernel()
    )
    for module in (triton_scan, triton_conv):
        monkeypatch.setattr(module, "_kernels", lambda: SimpleNamespace(**kernels))
    monkeypatch.setattr(triton_scan, "_multiprocessors", lambda _: 4)  # chunks of 256 tokens
    torch.use_deterministic_algorithms(False)
    d, n = 2 * c, 16
    x, *weights = make_inputs(length=8192, c=c, d=d, n=n, rank=c // 16, out=c)
    x = x.to(dtype)
    weights = [w.to(dtype) if i in (0, 3, 4, 8) else w for i, w in enumerate(weights)]
    size = x.untyped_storage().nbytes()
    with Live() as live:
        out = mixer_module._mamba_mixer_triton._init_fn(x, *weights)
    assert live.most <= forward * size
    assert live.now == out.untyped_storage().nbytes()
    with Live() as live:
        mixer_module._mamba_mixer_triton_backward._init_fn(x, x, *weights)
    assert live.most <= backward * size


@needs_triton
@needs_gpu
@pytest.mark.parametrize(
    "case",
    [
        {"length": 262_144, "c": 32},
        {"length": 4096, "c": 512, "batch": 2},
        {"length": 3137, "c": 100, "batch": 3, "taps": 3, "n": 5},
    ],
)
def test_sizes_of_networks(case):
    """As near to float64 as the composition in float32, at least within 4 times, or 1e-5."""
    c = case["c"]
    sizes = {"d": 2 * c, "n": 16, "rank": -(-c // 16), "taps": 4, "out": c}
    inputs = on_device(**sizes | case)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        truth, single = (run(inputs, "torch", dtype) for dtype in (torch.float64, torch.float32))
    for name, x in run(inputs, "triton").items():
        assert x.isfinite().all(), name
        assert distance(x, truth[name]) <= max(1e-5, 4 * distance(single[name], truth[name])), name


@needs_triton
@needs_gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 20), (torch.bfloat16, 28)])
def test_memory_on_a_gpu(dtype, most):
    """The peak of forward and backward, in multiples of x."""
    inputs = on_device(length=262_144, c=32, d=64, n=16, rank=2, taps=4, out=32)
    xs = [x.to(dtype if i == 0 else x.dtype).requires_grad_() for i, x in enumerate(inputs)]
    dy = torch.randn_like(xs[0])

    def step() -> None:
        torch.autograd.grad(mamba_mixer(*xs, backend="triton"), xs, dy)

    step()  # products have memory of their own from the first on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= most * xs[0].untyped_storage().nbytes()


@needs_triton
@needs_gpu
def test_block_under_autocast():
    """Within 4 eps of float64 in bfloat16, in the products alone; as without it in float16."""
    torch.manual_seed(0)
    block = Mamba(32, backend="triton").cuda()
    x = torch.randn(1, 4096, 32, device="cuda", requires_grad=True)
    dy = torch.randn(1, 4096, 32, device="cuda")
    names = ["x", *(name for name, _ in block.named_parameters())]

    def results(block: Mamba, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
        y = block(x)
        grads = torch.autograd.grad(y, [x, *block.parameters()], dy)
        return {"y": y.detach(), **dict(zip(names, grads, strict=True))}

    single = results(block, x, dy)
    with torch.autocast("cuda", dtype=torch.float16):
        half = results(block, x, dy)
    assert all(torch.equal(half[name], single[name]) for name in single)

    kept = set()
    with (
        torch.autocast("cuda", dtype=torch.bfloat16),
        saved_tensors_hooks(lambda x: (kept.add((x.dtype, x.shape)), x)[1], lambda x: x),
    ):
        found = results(block, x, dy)
    assert (torch.bfloat16, x.shape) in kept

    exact = copy.deepcopy(block).double()
    exact.backend = "torch"
    truth = results(exact, x.detach().double().requires_grad_(), dy.double())
    for name, result in found.items():
        assert result.dtype == torch.float32, name
        assert distance(result, truth[name]) < 4 * torch.finfo(torch.bfloat16).eps, name


@needs_triton
@needs_gpu
def test_compiled_block_under_autocast():
    block = Mamba(32, backend="triton").cuda()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 100, 32, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), block(x))


@needs_triton
@needs_gpu
def test_float16_range_on_a_gpu():
    """An input projection beyond 65,504, under autocast to float16."""
    torch.manual_seed(0)
    block, x = Mamba(32, backend="triton").cuda(), torch.randn(1, 200, 32, device="cuda")
    with torch.no_grad():
        block.in_proj.weight.mul_(3e5)
        block.x_proj.weight.div_(3e5)
    with torch.autocast("cuda", dtype=torch.float16):
        y = block(x)
    assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


@needs_triton
@needs_gpu
def test_convolution_beyond_32_bits():
    d, length, few = 1056, 2_097_152, slice(1053, 1056)  # 4.4e9 numbers, of u and z
    xz = torch.randn(1, length, 2 * d, device="cuda", dtype=torch.bfloat16)
    x, dy = xz[..., :d].mT, xz[..., d:].mT
    weight, bias = torch.randn(d, 1, 4, device="cuda"), torch.randn(d, device="cuda")
    y, dx = (torch.empty(1, length, d, device="cuda", dtype=x.dtype).mT for _ in range(2))
    triton_conv.causal_conv(x, weight, bias, y)
    dweight, dbias = triton_conv.causal_conv_backward(dy, x, weight, bias, dx)
    found = (y[:, few], dx[:, few], dweight[few], dbias[few])
    truths = convolution(x[:, few], weight[few], bias[few], dy[:, few])
    for result, truth in zip(found, truths, strict=True):
        assert distance(result, truth) < (1e-2 if result.dtype == x.dtype else 1e-4)


COMPILE = """
from common.ops import triton_conv, triton_scan
from common.ops.mamba_mixer_triton import _mamba_mixer_triton
from tests.ops.test_mamba_mixer import make_inputs

triton_scan.SHORTEST_CHUNK, triton_scan._multiprocessors = 8, lambda _: 132
what, taps, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
x, *weights = make_inputs(length=48, c=32, d=64, n=16, taps=taps)
names = {"forward", "backward"}
if what == "convolution":
    xz = torch.zeros(1, 48, 128, dtype=dtype)
    u, du = xz[..., :64].mT, torch.zeros(1, 48, 64, dtype=dtype).mT
    triton_conv.causal_conv(u, *weights[1:3], du)
    triton_conv.causal_conv_backward(du, u, *weights[1:3], torch.zeros_like(du))
else:
    weights = [w.to(dtype) if i in (0, 3, 4, 8) else w for i, w in enumerate(weights)]
    _mamba_mixer_triton(x.to(dtype).requires_grad_(), *weights).sum().backward()
    names |= {"chunk_states", "carry", "chunk_adjoints"}
assert set(compiled) == names, compiled
assert all(compiled.values())
"""


@needs_triton
@pytest.mark.parametrize(
    ("what", "taps", "dtype"),
    [
        ("convolution", 4, "float32"),
        pytest.param("convolution", 1, "float16", marks=pytest.mark.slow),
        pytest.param("convolution", 7, "bfloat16", marks=pytest.mark.slow),
        pytest.param("mixer", 4, "float32", marks=pytest.mark.slow),
        pytest.param("mixer", 4, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_hopper(tmp_path, what, taps, dtype):
    compile_for_hopper(tmp_path, COMPILE, what, taps, dtype)
