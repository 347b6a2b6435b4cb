from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import quantize_dynamic

from common.blocks import Mamba
from common.ops import dtype_of_products, native, triton_scan


def test_state_dict_is_that_of_mamba_ssm():
    shapes = {name: tuple(x.shape) for name, x in Mamba(24).state_dict().items()}
    assert shapes == {
        "A_log": (48, 16),
        "D": (48,),
        "in_proj.weight": (96, 24),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "x_proj.weight": (2 + 32, 48),
        "dt_proj.weight": (48, 2),
        "dt_proj.bias": (48,),
        "out_proj.weight": (24, 48),
    }


def orders(length: int, slices: int) -> list[list[int]]:
    """The sites of SegMamba's three orders: position p n + r of the third holds r L / n + p."""
    run = length // slices
    across = [r * run + p for p in range(run) for r in range(slices)]
    return [list(range(length)), list(range(length))[::-1], across]


def test_three_orders_are_three_blocks_that_share_their_projections():
    torch.manual_seed(0)
    block = Mamba(8, slices=3).double()
    weights = block.state_dict()
    shared = {name: weights[name] for name in ("in_proj.weight", "out_proj.weight")}
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for place, order in zip(("", "others.reversed.", "others.sliced."), orders(12, 3), strict=True):
        single = Mamba(8).double()
        own = {name: weights[place + name] for name in single.state_dict() if name not in shared}
        single.load_state_dict(shared | own)
        expected[:, order] += single(x[:, order])
    torch.testing.assert_close(block(x), expected)


def test_three_orders_in_torchscript_and_in_float32():
    torch.manual_seed(0)
    block = Mamba(8, slices=4)
    x = torch.randn(2, 20, 8)
    y = block(x)
    y.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    block, x = block.double(), x.double()
    torch.testing.assert_close(y.double(), block(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))


def test_tokens_that_cannot_be_cut_into_slices():
    with pytest.raises(ValueError, match="x has 10 tokens; allowed are multiples of 4"):
        Mamba(8, slices=4)(torch.randn(1, 10, 8))


def test_initial_values():
    torch.manual_seed(0)
    block = Mamba(64)
    torch.testing.assert_close(block.A_log.exp()[5], torch.arange(1.0, 17))
    assert (block.D == 1).all()
    steps = F.softplus(block.dt_proj.bias)
    assert 1e-3 <= steps.min() < 2e-3
    assert 5e-2 < steps.max() <= 1e-1 + 1e-6


def test_is_causal():
    torch.manual_seed(0)
    block = Mamba(8).double()
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 7:] += 1
    before, after = block(x), block(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


def test_gradients_reach_every_parameter_and_input():
    torch.manual_seed(0)
    block = Mamba(4, d_state=3).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)
    block(x).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_backends_agree():
    torch.manual_seed(0)
    block = Mamba(8)
    x = torch.randn(2, 50, 8)
    expected = block(x)
    block.backend = "reference"
    torch.testing.assert_close(block(x), expected)


def test_shorter_than_the_convolution():
    assert Mamba(8)(torch.randn(1, 1, 8)).shape == (1, 1, 8)


@pytest.mark.parametrize("name", ["d_model", "d_state", "d_conv", "expand", "dt_rank", "slices"])
def test_bad_arguments_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0; allowed"):
        Mamba(**{"d_model": 8, name: 0})


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_dynamic_quantisation_leaves_it_as_it_is():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), Mamba(8)).eval()
    quantised = quantize_dynamic(network, {nn.Linear})
    assert isinstance(quantised[0], DynamicLinear)
    x = torch.randn(2, 50, 8)
    with torch.no_grad():
        assert torch.equal(quantised(x), network[1](quantised[0](x)))


def test_what_float16_cannot_hold_under_autocast():
    """An input projection beyond 65,504: not a number, where autocast reached into the block."""
    torch.manual_seed(0)
    block, x = Mamba(16), torch.randn(1, 20, 16)
    with torch.no_grad():
        block.in_proj.weight.mul_(3e5)
        block.x_proj.weight.div_(3e5)
    expected = block(x)
    in_triton = ["triton"] if triton_scan.why_unavailable() is None else []  # its interpreter
    for backend in ("auto", "torch", *in_triton):
        block.backend = backend
        with torch.autocast("cpu", dtype=torch.float16):
            y = block(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("device", "asked", "own", "expected"),
    [
        ("cuda", torch.bfloat16, torch.float32, torch.bfloat16),
        ("cuda", torch.float16, torch.float32, torch.float32),  # its range is too small
        ("cuda", None, torch.float32, torch.float32),
        ("cuda", torch.bfloat16, torch.float64, torch.float64),
        ("cuda", torch.bfloat16, torch.float16, torch.float16),
        ("cpu", torch.bfloat16, torch.float32, torch.bfloat16),
        ("cpu", torch.float16, torch.float32, torch.float32),
        ("mps", torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_what_projections_are_in_under_autocast(monkeypatch, device, asked, own, expected):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: asked is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: asked or torch.bfloat16)
    x = SimpleNamespace(device=torch.device(device))
    assert dtype_of_products(x, own) == expected


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_projections_in_bfloat16(backend):
    """In Triton see tests/ops/test_mamba_mixer_triton.py; in C++ they are where there is AMX."""
    torch.manual_seed(0)
    block = Mamba(8, backend=backend)
    x = torch.randn(2, 50, 8)
    expected = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    moved = (y - expected).norm()
    assert moved < 4 * torch.finfo(torch.bfloat16).eps * expected.norm()
    assert (moved > 0) == (backend == "torch" or native.has_tiles())
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in block.parameters())
