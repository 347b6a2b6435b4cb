"""The scan in four orders against the one-dimensional reference over explicit lists of sites, and
the C++ one, which reads the map where it lies, against the composition in float64."""

import itertools
import sys
import warnings

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from common.ops import cpp, cpp_2d, native, selective_scan, selective_scan_2d

scan_module = sys.modules["common.ops.selective_scan_2d"]
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")

needs_library = pytest.mark.skipif(
    native.why_unavailable() is not None, reason="needs a C++ compiler"
)


def arguments(height: int, width: int, d: int = 3, n: int = 2, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    grid = (height, width)
    u, delta, A = random(batch, d, *grid), random(batch, 4, d, *grid), -random(4, d, n).exp()
    B, C = random(batch, 4, n, *grid), random(batch, 4, n, *grid)
    return [u, delta, A, B, C, random(4, d), random(4, d)]


def as_in_the_block(inputs: list[Tensor]) -> list[Tensor]:
    """In float32, channels next to each other, and B and C slices of one wider projection."""
    u, delta, A, B, C, *rest = (x.float() for x in inputs)
    u = u.to(memory_format=torch.channels_last)
    delta = delta.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3)
    wide = torch.cat([B, B, C], dim=2).permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    n = A.shape[2]
    return [u, delta, A, wide[:, :, n : 2 * n], wide[:, :, 2 * n :], *rest]


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


def run(inputs, backend, dtype=torch.float32, softplus=True) -> dict[str, Tensor]:
    """The output, and gradients for a fixed random gradient of it."""
    xs = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    y = selective_scan_2d(*xs, softplus, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    given = {name: x for name, x in zip(NAMES, xs, strict=True) if x is not None}
    grads = torch.autograd.grad(y, list(given.values()), dy)
    return {"y": y.detach(), **dict(zip(given, grads, strict=True))}


def assert_equals_float64(inputs, softplus=True, instruction_sets=(2,), threads=(1,)) -> None:
    truth = run(inputs, "torch", torch.float64, softplus)
    for cpp._highest_isa, count in itertools.product(instruction_sets, threads):
        torch.set_num_threads(count)
        found = run(inputs, "cpp", softplus=softplus)
        torch.set_num_threads(1)
        for name, x in found.items():
            assert x.shape == truth[name].shape, name
            # One site has no state before it: A's true gradient is 0 then, and so must this one be.
            error = (x.double() - truth[name]).norm()
            assert error <= 1e-5 * truth[name].norm(), f"{name}: {error / truth[name].norm()}"


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


@needs_library
@pytest.mark.parametrize("n", [1, 2, 16])
@pytest.mark.parametrize("d", [3, 40, 80])  # 80 are more than a tile has
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (8, 8), (9, 13)])
def test_cpp_equals_float64(shape, d, n):
    assert_equals_float64(as_in_the_block(arguments(*shape, d, n)), instruction_sets=range(3))


@needs_library
@pytest.mark.parametrize(("n", "d"), [(1, 48), (2, 20), (16, 16)])
@pytest.mark.parametrize("shape", [(64, 64), (33, 70)])
def test_cpp_on_larger_maps(shape, n, d):
    # 16 channels cannot be parted, so two threads share that map by chunks.
    assert_equals_float64(as_in_the_block(arguments(*shape, d, n, batch=1)), threads=(1, 2))


@needs_library
def test_cpp_on_chunks_of_one_state():
    assert_equals_float64(as_in_the_block(arguments(33, 70, 16, 1)), threads=(2, 5))


@needs_library
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [False, True])
def test_options(optional, softplus, n):
    inputs = as_in_the_block(arguments(9, 13, 32, n))
    if not softplus:
        inputs[1], inputs[6] = inputs[1].abs(), inputs[6].abs()  # so that the recurrence is stable
    assert_equals_float64(inputs if optional else [*inputs[:5], None, None], softplus)


@needs_library
@pytest.mark.parametrize("n", [1, 2])
def test_any_strides(n):
    rows_first = [x.float() for x in arguments(9, 13, 32, n)]  # channels apart
    assert_equals_float64(rows_first)
    columns_first = [x.mT.contiguous().mT if x.dim() > 3 else x for x in rows_first]
    assert_equals_float64(columns_first)
    every_second = [x.repeat_interleave(2, -1)[..., ::2] for x in rows_first]
    assert_equals_float64(every_second)
    some = as_in_the_block(rows_first)
    some[1] = rows_first[1]  # u in place, delta gathered
    assert_equals_float64(some)
    y = selective_scan_2d(*(x.requires_grad_() for x in some), True, backend="cpp")
    y.sum().backward()  # an expanded gradient: all strides 0


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [16, 40, 96])
def test_same_bits_twice(d, threads):
    torch.set_num_threads(threads)
    inputs = as_in_the_block(arguments(33, 20, d, 1))
    first, second = (run(inputs, "cpp") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype):
    inputs = [x.to(dtype) for x in as_in_the_block(arguments(9, 13, 16, 1))]
    found, truth = run(inputs, "cpp", dtype), run(inputs, "torch", torch.float64)
    for name, x in found.items():
        assert x.dtype == dtype
        assert (x.double() - truth[name]).norm() < torch.finfo(dtype).eps * truth[name].norm()


@needs_library
def test_keeps_the_memory_layout():
    inputs = as_in_the_block(arguments(6, 5, 16, 1))
    found = run(inputs, "cpp")
    assert found["y"].stride() == found["u"].stride() == inputs[0].stride()
    assert found["delta"].stride() == inputs[1].stride()


@needs_library
@pytest.mark.parametrize("save_states", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_operator(optional, save_states):
    inputs = as_in_the_block(arguments(5, 14, 16, 1))
    inputs = inputs if optional else [*inputs[:5], None, None]
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(cpp_2d._selective_scan_2d_cpp, (*inputs, True, save_states))


@needs_library
def test_gradient_where_forward_saved_nothing():
    inputs = [x.requires_grad_() for x in as_in_the_block(arguments(5, 14, 16, 1))]
    y, z = (cpp_2d._selective_scan_2d_cpp(*inputs, True, save)[0] for save in (False, True))
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (y, z)), strict=True):
        assert torch.equal(a, b)


@needs_library
def test_auto_takes_cpp_but_for_float64(monkeypatch):
    taken = []

    def spy(*args):
        taken.append(args[0].dtype)
        return cpp_2d.selective_scan_2d_cpp(*args)

    monkeypatch.setattr(scan_module, "selective_scan_2d_cpp", spy)
    inputs = arguments(4, 5)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        selective_scan_2d(*(x.to(dtype) for x in inputs), True)
    assert taken == [torch.float32, torch.bfloat16]


@needs_library
def test_exported_program_runs_without_the_library():
    class Scan(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return selective_scan_2d(*args, delta_softplus=True)

    inputs = tuple(as_in_the_block(arguments(4, 5)))
    exported = torch.export.export(Scan(), inputs)
    assert "cpp" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs), selective_scan_2d(*inputs, True))


@needs_library
def test_compiled_in_one_graph():
    inputs = [x.requires_grad_() for x in as_in_the_block(arguments(4, 5, 16, 1))]

    def scan(*args: Tensor) -> Tensor:
        return selective_scan_2d(*args, delta_softplus=True).square()

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(
        *(torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, scan)), strict=True
    ):
        assert torch.equal(got, wanted)


@needs_library
def test_tensors_of_monai_are_taken_as_plain_ones():
    inputs = as_in_the_block(arguments(4, 5))
    y = selective_scan_2d(MetaTensor(inputs[0]), *inputs[1:], True)
    assert type(y) is Tensor
    assert torch.equal(y, selective_scan_2d(*inputs, True))


@pytest.mark.parametrize(
    ("position", "shape", "allowed"),
    [
        (0, (2, 3, 20), r"u has shape \(2, 3, 20\); allowed is \(b, d, h, w\)"),
        (1, (2, 3, 4, 5), r"delta has shape .*; allowed is \(2, 4, 3, 4, 5\)"),
        (2, (12, 2), r"A has shape \(12, 2\); allowed is \(4, d, n\) with d = 3"),
        (3, (2, 4, 1, 4, 5), r"B has shape .*; allowed is \(2, 4, 2, 4, 5\)"),
        (4, (2, 4, 2, 5, 4), r"C has shape .*; allowed is \(2, 4, 2, 4, 5\)"),
        (5, (12,), r"D has shape \(12,\); allowed is \(4, 3\)"),
        (6, (3,), r"delta_bias has shape \(3,\); allowed is \(4, 3\)"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_bad_shape_is_named(position, shape, allowed, backend):
    inputs = arguments(4, 5)
    inputs[position] = torch.ones(shape)
    with pytest.raises(ValueError, match=allowed):
        selective_scan_2d(*inputs, True, backend=backend)


def test_bad_arguments_are_named():
    inputs = arguments(4, 5)
    with pytest.raises(ValueError, match="backend is 'cuda'; allowed are auto, reference"):
        selective_scan_2d(*inputs, backend="cuda")
    with pytest.raises(ValueError, match=r"B has dtype torch\.int64; allowed are floating"):
        selective_scan_2d(*inputs[:3], inputs[3].long(), *inputs[4:])
    with pytest.raises(ValueError, match=r"u has dtype torch\.float64; allowed .* float32"):
        selective_scan_2d(*inputs, backend="cpp")
    inputs = [x.float() for x in inputs]
    with pytest.raises(ValueError, match=r"delta is on meta; allowed .* CPU"):
        selective_scan_2d(inputs[0], inputs[1].to("meta"), *inputs[2:], backend="cpp")
