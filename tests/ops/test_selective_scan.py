import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor

from common.ops import selective_scan, selective_scan_chunked

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def arguments(
    b: int = 2,
    d: int = 6,
    l: int = 20,  # noqa: E741
    n: int = 5,
    groups: int | None = None,
    absent: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = (b, n, l) if groups is None else (b, groups, n, l)
    tokens = (b, d, l)
    shapes = dict(zip(NAMES, (tokens, tokens, (d, n), maps, maps, (d,), tokens, (d,)), strict=True))
    values = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
        if name not in absent
    }
    values["A"] = -values["A"].abs() - 0.1
    return values


def outputs_and_gradients(args: dict[str, Tensor], softplus: bool, backend: str) -> list[Tensor]:
    args = {name: x.detach().clone().requires_grad_() for name, x in args.items()}
    y, last = selective_scan(
        **args, delta_softplus=softplus, return_last_state=True, backend=backend
    )
    # Every element of both outputs gets a weight of its own.
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    loss = (y * weights).sum() + (last**2).sum()
    return [y, last, *torch.autograd.grad(loss, list(args.values()))]


def assert_equal(first: list[Tensor], second: list[Tensor], tolerance: float) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert torch.isfinite(b).all()
        assert (a - b).norm() <= tolerance * a.norm() + 1e-300


def test_reference_is_the_recurrence():
    args = dict(zip(NAMES, (0.7, 0.3, -2.0, 0.9, 1.1, 0.4, 0.6, 0.2), strict=True))
    step = math.log1p(math.exp(args["delta"] + args["delta_bias"]))
    h1 = step * args["B"] * args["u"]
    h2 = math.exp(step * args["A"]) * h1 + step * args["B"] * args["u"]
    gate = args["z"] / (1 + math.exp(-args["z"]))
    expected = [(args["C"] * h + args["D"] * args["u"]) * gate for h in (h1, h2)]
    two = torch.ones(1, 1, 2, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    y, last = selective_scan(
        args["u"] * two,
        args["delta"] * two,
        args["A"] * one[None],
        args["B"] * two,
        args["C"] * two,
        args["D"] * one,
        args["z"] * two,
        args["delta_bias"] * one,
        True,
        True,
        backend="reference",
    )
    torch.testing.assert_close(y[0, 0], torch.tensor(expected, dtype=torch.float64))
    assert last.item() == pytest.approx(h2)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_reference_gradients(absent: tuple[str, ...], softplus: bool):
    args = arguments(b=1, d=4, l=5, n=3, groups=2, absent=absent)
    names = list(args)

    def scan(*values: Tensor):
        named = dict(zip(names, values, strict=True))
        return selective_scan(
            **named, delta_softplus=softplus, return_last_state=True, backend="reference"
        )

    assert torch.autograd.gradcheck(scan, [args[name].requires_grad_() for name in names])


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("groups", [None, 1, 3, 6])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_torch_equals_reference(length: int, groups: int | None, absent, softplus: bool):
    args = arguments(l=length, groups=groups, absent=absent)
    if not softplus:  # steps without a softplus are positive by themselves
        args["delta"] = args["delta"].abs()
        if "delta_bias" in args:
            args["delta_bias"] = args["delta_bias"].abs()
    assert_equal(
        outputs_and_gradients(args, softplus, "reference"),
        outputs_and_gradients(args, softplus, "torch"),
        1e-12,
    )


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 1000),
    # From 3, for norms of several numbers: a sum of a single one may cancel, in the loop's favour.
    d=st.integers(3, 9),
    n=st.integers(3, 17),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_torch_equals_reference_in_float32(length: int, d: int, n: int, scale: float):
    args = arguments(b=1, d=d, l=length, n=n, dtype=torch.float32)
    args["delta"] = args["delta"] * scale
    args["A"] = args["A"] * scale
    exact = outputs_and_gradients({k: x.double() for k, x in args.items()}, True, "torch")
    loop = outputs_and_gradients(args, True, "reference")
    fast = outputs_and_gradients(args, True, "torch")
    for a, b, c in zip(exact, loop, fast, strict=True):
        allowed = max(1e-5 * a.norm().item(), 4 * (a - b).norm().item())
        assert (a - c).norm().item() <= allowed + 1e-30


def test_long_sequence_equals_reference():
    args = arguments(b=1, d=2, l=1000, n=4)
    assert_equal(
        outputs_and_gradients(args, True, "reference"),
        outputs_and_gradients(args, True, "torch"),
        1e-12,
    )


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, budget: int):
    from common.ops import chunked

    args = arguments(l=1000)
    expected = outputs_and_gradients(args, True, "torch")
    chunking = chunked._chunking
    monkeypatch.setattr(chunked, "_chunking", lambda u, n: chunking(u, n, budget))
    assert_equal(expected, outputs_and_gradients(args, True, "torch"), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype):
    args = arguments(l=100, dtype=dtype)
    args["A"] = args["A"].float()
    y, last = selective_scan(**args, delta_softplus=True, return_last_state=True)
    exact = selective_scan(**{k: x.double() for k, x in args.items()}, delta_softplus=True)
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    error = (y.double() - exact).norm() / exact.norm()
    assert error <= torch.finfo(dtype).eps
    for name, grad in zip(args, outputs_and_gradients(args, True, "torch")[2:], strict=True):
        assert grad.dtype == args[name].dtype


def test_strides_do_not_matter():
    args = arguments(l=40)
    expected = outputs_and_gradients(args, True, "torch")
    turned = {
        name: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x
        for name, x in args.items()
    }
    assert_equal(expected, outputs_and_gradients(turned, True, "torch"), 1e-14)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_tensors_of_monai_are_taken_as_plain_ones(backend: str):
    args = arguments(dtype=torch.float32, absent=("D",))
    expected = outputs_and_gradients(args, True, backend)
    meta = {name: MetaTensor(x) for name, x in args.items()}
    found = outputs_and_gradients(meta, True, backend)
    assert type(selective_scan(**meta, backend=backend)) is Tensor
    assert_equal(expected, [x.as_subclass(Tensor) for x in found], 0.0)


@pytest.mark.parametrize("delta", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("decay", [-1e-4, -1e3])
def test_extremes_stay_finite(delta: float, decay: float):
    args = arguments(l=300, dtype=torch.float32)
    args["delta"] = torch.full_like(args["delta"], delta)
    args["A"] = torch.full_like(args["A"], decay)
    for x in outputs_and_gradients(args, True, "torch"):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")])
def test_registered_operator(absent: tuple[str, ...]):
    args = arguments(b=1, d=4, l=20, n=3, groups=2, absent=absent)
    values = [args[name].requires_grad_() if name in args else None for name in NAMES]
    torch.library.opcheck(torch.ops.monai_mamba.selective_scan.default, (*values, True))


def test_compiled_equals_eager():
    args = arguments(dtype=torch.float32)
    eager = selective_scan(**args, delta_softplus=True)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**args, delta_softplus=True), eager)


def test_scripted_equals_eager():
    args = arguments(dtype=torch.float32)
    scripted = torch.jit.script(selective_scan_chunked)
    y, _ = scripted(**args, delta_softplus=True)
    torch.testing.assert_close(y, selective_scan(**args, delta_softplus=True))


def test_same_bits_twice():
    args = arguments(l=500, dtype=torch.float32)
    first, second = (outputs_and_gradients(args, True, "torch") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'; allowed are auto, reference, torch"),
        ({"u": torch.zeros(2, 6)}, r"u has shape \(2, 6\); allowed is \(b, d, l\)"),
        ({"u": torch.zeros(2, 6, 0)}, r"u has shape \(2, 6, 0\)"),
        (
            {"delta": torch.zeros(2, 6, 21)},
            r"delta has shape \(2, 6, 21\); allowed is \(2, 6, 20\)",
        ),
        ({"A": torch.zeros(5, 5)}, r"A has shape \(5, 5\); allowed is \(d, n\) with d = 6"),
        ({"B": torch.zeros(2, 4, 5, 20)}, r"B has shape \(2, 4, 5, 20\).*g a divisor of 6"),
        ({"C": torch.zeros(2, 1, 5, 20)}, r"B has shape .* and C"),
        ({"D": torch.zeros(5)}, r"D has shape \(5,\); allowed is \(6,\)"),
        ({"z": torch.zeros(2, 6, 20, dtype=torch.int64)}, "z has dtype torch.int64"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        selective_scan(**(arguments() | change))
