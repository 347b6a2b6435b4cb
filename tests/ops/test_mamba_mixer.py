"""The C++ mixer against the plain composition in float64, outputs and every gradient."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.ops import (
    cpp,
    mamba_mixer,
    mamba_mixer_chunked,
    mamba_mixer_cpp,
    native,
    selective_scan,
)

from .test_cpp import distance

layer_norm_module = sys.modules["common.ops.layer_norm"]
NAMES = (
    *("x", "in_proj", "conv_weight", "conv_bias", "x_proj"),
    *("dt_proj", "dt_bias", "A", "D", "out_proj"),
)

needs_library = pytest.mark.skipif(
    native.why_unavailable() is not None, reason="needs a C++ compiler"
)


def make_inputs(batch=1, length=50, c=6, d=20, n=4, rank=2, taps=4, out=5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    return [
        torch.randn(batch, length, c, generator=generator),
        *(normal(2 * d, c), normal(d, 1, taps), normal(d), normal(rank + 2 * n, d)),
        *(normal(d, rank), normal(d) - 2, -torch.exp(normal(d, n)), normal(d), normal(out, d)),
    ]


def run(inputs: list[Tensor], backend: str, dtype=torch.float32) -> dict[str, Tensor]:
    xs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    y = mamba_mixer(*xs, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grads = torch.autograd.grad(y, xs, torch.randn(y.shape, generator=generator).to(y))
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(NAMES, grads, strict=True)}}


def assert_equals_float64(inputs: list[Tensor]) -> None:
    truth = run(inputs, "torch", torch.float64)
    for name, x in run(inputs, "cpp").items():
        assert distance(x, truth[name]) < 1e-5, name


@needs_library
@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("chunk", [1, 1 << 12, 1 << 18])
def test_equals_float64(monkeypatch, length, batch, chunk):
    monkeypatch.setattr(mamba_mixer_cpp, "CHUNK", chunk)  # 64 tokens, one or some items, all
    torch.set_num_threads(2)
    assert_equals_float64(make_inputs(batch, length))


@needs_library
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("isa", range(3))
@pytest.mark.parametrize("d", [3, 16, 70])
def test_taps_and_instruction_sets(monkeypatch, taps, isa, d):
    monkeypatch.setattr(mamba_mixer_cpp, "CHUNK", 1)
    cpp._highest_isa = isa
    assert_equals_float64(make_inputs(length=130, d=d, taps=taps))


@needs_library
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_in_any_layout(batch):
    inputs = make_inputs(batch, length=70)
    inputs[0] = inputs[0].mT.contiguous().mT
    assert_equals_float64(inputs)
    xs = [x.requires_grad_() for x in inputs]
    mamba_mixer(*xs, backend="cpp").sum().backward()  # an expanded gradient: all strides 0


@needs_library
@pytest.mark.parametrize("c", [1, 17, 32])
@pytest.mark.parametrize("n", [1, 3, 16, 21])
@pytest.mark.parametrize(("d", "rank", "out"), [(1, 1, 1), (15, 17, 33), (48, 3, 16)])
def test_sizes_around_vectors(monkeypatch, isa, c, n, d, rank, out):
    monkeypatch.setattr(mamba_mixer_cpp, "CHUNK", 1)
    assert_equals_float64(make_inputs(2, 66, c, d, n, rank, out=out))


@needs_library
@pytest.mark.parametrize(("batch", "length"), [(1, 3000), (3, 1000), (5, 3)])
def test_same_bits_whatever_the_threads(monkeypatch, batch, length):
    monkeypatch.setattr(mamba_mixer_cpp, "CHUNK", 1)
    inputs = make_inputs(batch, length, d=100)
    torch.set_num_threads(1)
    expected = run(inputs, "cpp")
    for threads in (1, 2, 2, 5, 5):
        torch.set_num_threads(threads)
        for name, x in run(inputs, "cpp").items():
            assert torch.equal(x, expected[name]), (threads, name)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype):
    xs = [x.to(dtype).requires_grad_() for x in make_inputs()]
    y = mamba_mixer(*xs, backend="cpp")
    truth = mamba_mixer(*(x.detach().double() for x in xs), backend="torch")
    assert y.dtype == dtype
    assert distance(y.detach(), truth) < torch.finfo(dtype).eps
    y.sum().backward()
    assert all(x.grad.dtype == x.dtype and x.grad.isfinite().all() for x in xs)


@needs_library
def test_autocast_does_not_reach_into_it():
    inputs = make_inputs()
    expected = mamba_mixer(*inputs, backend="cpp")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mamba_mixer(*inputs, backend="cpp"), expected)


needs_tiles = pytest.mark.skipif(
    native.why_unavailable() is not None or not native.has_tiles(), reason="needs AMX"
)
SIZES = [
    {"length": 70, "c": 6, "d": 20, "out": 5},
    {"length": 1, "c": 1, "d": 1, "n": 1, "rank": 1, "out": 1},
    {"length": 200, "c": 32, "d": 64, "n": 16, "out": 64},
    {"length": 133, "c": 33, "d": 70, "n": 3, "rank": 33, "taps": 7, "out": 49, "batch": 2},
    {"length": 64, "c": 64, "d": 128, "taps": 1, "out": 32},
]


def as_rounded(x: Tensor) -> Tensor:
    """Rounded to bfloat16; its gradient is that of x."""
    return x + (x.bfloat16().to(x) - x).detach()


def in_bfloat16(
    x: Tensor, in_proj: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor,
    dt_proj: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, out_proj: Tensor,
) -> Tensor:  # fmt: skip
    """The composition in float64, with factors rounded as the library does it."""
    d, _, taps = conv_weight.shape
    u, z = F.linear(as_rounded(x), as_rounded(in_proj)).mT.chunk(2, dim=1)
    u = F.silu(F.conv1d(F.pad(u, [taps - 1, 0]), conv_weight, conv_bias, groups=d))
    maps = F.linear(as_rounded(u).mT, as_rounded(x_proj))
    dt, B, C = maps.split([dt_proj.shape[1], A.shape[1], A.shape[1]], dim=-1)
    delta = F.linear(dt, dt_proj).mT
    y = selective_scan(u, delta, A, B.mT, C.mT, D, z, dt_bias, True, backend="torch")
    return F.linear(as_rounded(y).mT, as_rounded(out_proj))


def gradients(y: Tensor, xs: list[Tensor]) -> list[Tensor]:
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return list(torch.autograd.grad(y, xs, dy))


@needs_tiles
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("chunk", [1, 1 << 14])
def test_products_in_bfloat16(monkeypatch, sizes, chunk):
    monkeypatch.setattr(mamba_mixer_cpp, "CHUNK", chunk)
    xs = [x.requires_grad_() for x in make_inputs(**sizes)]
    y = mamba_mixer(*xs, products=torch.bfloat16, backend="cpp")
    doubles = [x.detach().double().requires_grad_() for x in xs]
    expected = in_bfloat16(*doubles)
    assert y.dtype == torch.float32
    # A number that float32 and float64 round otherwise is rare.
    assert distance(y.detach(), expected.detach()) < 1e-4
    # There the gradients are rounded, too, before they are multiplied.
    for name, found, wanted in zip(
        NAMES, gradients(y, xs), gradients(expected, doubles), strict=True
    ):
        assert distance(found, wanted) < 2 * torch.finfo(torch.bfloat16).eps, name


@needs_tiles
def test_bits_of_bfloat16_whatever_the_threads():
    xs = [x.requires_grad_() for x in make_inputs(2, 3000, d=100, c=40)]
    torch.set_num_threads(1)
    y = mamba_mixer(*xs, products=torch.bfloat16, backend="cpp")
    expected = [y, *gradients(y, xs)]
    assert not torch.equal(y, mamba_mixer(*xs, backend="cpp"))
    for threads in (2, 5):
        torch.set_num_threads(threads)
        y = mamba_mixer(*xs, products=torch.bfloat16, backend="cpp")
        for found, wanted in zip([y, *gradients(y, xs)], expected, strict=True):
            assert torch.equal(found, wanted)


@needs_tiles
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_in_bfloat16(value):
    """It reaches what depends on it and nothing else, as in float32."""
    for index in range(len(NAMES)):
        inputs = make_inputs(length=70, c=33, d=20)
        inputs[index].view(-1)[-1] = value
        finite = [
            mamba_mixer(*inputs, products=products, backend="cpp").isfinite()
            for products in (torch.float32, torch.bfloat16)
        ]
        assert torch.equal(*finite), NAMES[index]


@needs_tiles
def test_tiles_of_others_stay():
    """oneDNN's own, on the same threads, before and after."""
    x = torch.randn(512, 256).bfloat16()
    weight = torch.randn(256, 256).bfloat16()
    expected = x @ weight
    for _ in range(3):
        mamba_mixer(*make_inputs(length=500, d=64), products=torch.bfloat16, backend="cpp")
        assert torch.equal(x @ weight, expected)


@needs_library
def test_without_tiles_products_are_in_float32(isa):
    inputs = make_inputs()
    found = mamba_mixer(*inputs, products=torch.bfloat16, backend="cpp")
    same = torch.equal(found, mamba_mixer(*inputs, backend="cpp"))
    assert same == (cpp._highest_isa < 2 or not native.has_tiles())


@needs_library
@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("save_states", [True, False])
def test_operator(save_states, bfloat16):
    inputs = [x.requires_grad_() for x in make_inputs(batch=2, d=3, length=70)]
    torch.library.opcheck(mamba_mixer_cpp._mamba_mixer_cpp, (*inputs, save_states, bfloat16))


@needs_library
def test_gradient_where_forward_saved_nothing():
    inputs = [x.requires_grad_() for x in make_inputs()]
    y, _ = mamba_mixer_cpp._mamba_mixer_cpp(*inputs, False)
    z, _ = mamba_mixer_cpp._mamba_mixer_cpp(*inputs, True)
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (y, z)), strict=True):
        assert torch.equal(a, b)


@needs_library
def test_auto_takes_it_for_float32_only():
    inputs = make_inputs()
    assert torch.equal(mamba_mixer(*inputs), mamba_mixer(*inputs, backend="cpp"))
    doubles = [x.double() for x in inputs]
    assert torch.equal(mamba_mixer(*doubles), mamba_mixer(*doubles, backend="torch"))
    with pytest.raises(ValueError, match=r"x has dtype torch\.float64; allowed .* float32"):
        mamba_mixer(*doubles, backend="cpp")


def test_composition_is_differentiated_and_scripted_alike():
    inputs = [x.double().requires_grad_() for x in make_inputs(length=5, d=3, c=2, n=2)]
    assert torch.autograd.gradcheck(lambda *xs: mamba_mixer(*xs, backend="reference"), inputs)
    scripted = torch.jit.script(mamba_mixer_chunked)
    torch.testing.assert_close(scripted(*inputs), mamba_mixer(*inputs, backend="reference"))


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (3, 6), r"x has shape \(3, 6\); allowed is \(b, l, c\)"),
        (1, (40, 5), r"in_proj has shape \(40, 5\); allowed is \(40, 6\)"),
        (2, (20, 4), r"conv_weight has shape \(20, 4\); allowed is \(d, 1, k\), none of them 0"),
        (2, (20, 1, 0), r"conv_weight has shape \(20, 1, 0\); allowed is \(d, 1, k\), none of"),
        (2, (20, 2, 4), r"conv_weight has shape \(20, 2, 4\); allowed is \(20, 1, 4\)"),
        (2, (), r"conv_weight has shape \(\); allowed is \(d, 1, k\)"),
        (4, (9, 20), r"x_proj has shape \(9, 20\); allowed is \(10, 20\)"),
        (5, (20, 0), r"dt_proj has shape \(20, 0\); allowed is \(d, r\), none of them 0"),
        (5, (), r"dt_proj has shape \(\); allowed is \(d, r\)"),
        (7, (20,), r"A has shape \(20,\); allowed is \(d, n\)"),
        (7, (20, 0), r"A has shape \(20, 0\); allowed is \(d, n\), none of them 0"),
        (9, (0, 20), r"out_proj has shape \(0, 20\); allowed is \(c', d\), none of them 0"),
        (9, (5, 19), r"out_proj has shape \(5, 19\); allowed is \(5, 20\)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_bad_arguments_are_named(index, shape, message, backend):
    inputs = make_inputs()
    inputs[index] = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        mamba_mixer(*inputs, backend=backend)


def test_whole_numbers_are_refused():
    for index, name in enumerate(NAMES):
        inputs = make_inputs()
        inputs[index] = inputs[index].long()
        with pytest.raises(
            ValueError, match=rf"{name} has dtype torch\.int64; allowed are floating"
        ):
            mamba_mixer(*inputs)


@needs_library
def test_library_refuses_a_size_of_zero():
    scan = ("batch", "channels", "groups", "height", "width", "states", "orders")
    mixer = ("batch", "length", "channels", "inner", "states", "rank", "taps", "outputs", "chunk")
    for functions, struct, sizes in (
        (("selective_scan_forward", "selective_scan_backward"), cpp._Scan, scan),
        (("mamba_mixer_forward", "mamba_mixer_backward"), mamba_mixer_cpp._Mixer, mixer),
        (("layer_norm_forward",), layer_norm_module._LayerNorm, ("width",)),
    ):
        for function, zero in itertools.product(functions, sizes):
            arguments = struct(**{size: int(size != zero) for size in sizes})
            with pytest.raises(ValueError, match=f"{function} was given a size of 0"):
                cpp._run(function, arguments)
