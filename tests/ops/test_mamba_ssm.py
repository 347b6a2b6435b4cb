"""The mamba-ssm backend, with a stand-in for the package: what it is given, and what comes back."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.ops import causal_conv1d, mamba_mixer, mamba_ssm_scan, selective_scan
from common.ops.reference import selective_scan_reference

from .test_cpp import make_inputs
from .test_mamba_mixer import make_inputs as mixer_inputs
from .test_mamba_mixer import run as run_mixer
from .test_triton import cuda, run

scan_module = sys.modules["common.ops.selective_scan"]
mixer_module = sys.modules["common.ops.mamba_mixer"]


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Tensor | None]]:
    """Puts the stand-in into sys.modules, lets CPU tensors in, and returns what it is called with.

    The stand-in is selective_scan_fn of mamba-ssm 2.2 and later: it asks for u's dtype for
    whatever has tokens and float32 for the rest, and drops the last state's gradient.
    """
    calls = []

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
        return_last_state=False,
    ):  # fmt: skip
        given = locals()
        calls.append({name: x for name, x in given.items() if isinstance(x, Tensor)})
        assert all(x is None or x.dtype == u.dtype for x in (delta, B, C, z))
        assert all(x is None or x.dtype == torch.float32 for x in (A, D, delta_bias))
        assert all(x is None or x.stride(-1) == 1 for x in (A, D, delta_bias))
        y, last = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return (y, last.detach() + 0 * u.sum()) if return_last_state else y

    package, ops = ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops")
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    package.ops, ops.selective_scan_interface = ops, interface
    for module in (package, ops, interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(mamba_ssm_scan, "_check", lambda u, A: None)
    mamba_ssm_scan.why_unavailable.cache_clear()
    yield calls
    mamba_ssm_scan.why_unavailable.cache_clear()


def gradients(inputs, backend: str) -> list[Tensor]:
    xs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    y = selective_scan(*xs, True, backend=backend)
    grads = torch.autograd.grad(torch.sin(y.float()).sum(), [x for x in xs if x is not None])
    return [y.detach(), *grads]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("optional", [(True,) * 3, (False,) * 3])
def test_equals_reference(calls, groups, optional):
    inputs = make_inputs(groups=groups, group_channels=4, length=20, n=3, optional=optional)
    found, expected = gradients(inputs, "mamba_ssm"), gradients(inputs, "reference")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert calls[0]["B"].shape == inputs[3].shape
    y, last = selective_scan(*inputs, True, return_last_state=True, backend="mamba_ssm")
    expected = selective_scan(*inputs, True, return_last_state=True, backend="reference")
    assert torch.equal(y, expected[0])
    assert torch.equal(last, expected[1])


def test_mixed_dtypes(calls):
    inputs = make_inputs(group_channels=4, length=20, n=3)
    mixed = [
        x.to(torch.bfloat16 if i in (0, 5, 7) else torch.float16) for i, x in enumerate(inputs)
    ]
    y, *grads = gradients(mixed, "mamba_ssm")
    assert y.dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [x.dtype for x in mixed]


def test_gradient_through_the_last_state_is_refused(calls):
    inputs = make_inputs(group_channels=4, length=5, n=3)
    with pytest.raises(RuntimeError, match=r"last state has a gradient, which .* 'mamba_ssm'"):
        run(inputs, True, "mamba_ssm")


def test_auto_takes_it_where_it_is_faster(calls, monkeypatch):
    A = torch.zeros(1024, 16)
    monkeypatch.setattr(scan_module.triton_scan, "why_unavailable", lambda: None)

    def fastest(u=None, A=A, but_mamba_ssm=False) -> str:
        return scan_module.fastest(u or cuda(d=1024), A, but_mamba_ssm)

    assert fastest() == "mamba_ssm"
    assert fastest(cuda(d=1023)) == "triton"
    assert fastest(cuda(d=2**29)) == "triton"  # too many elements
    assert fastest(A=torch.zeros(1024, 257)) == "triton"
    assert fastest(but_mamba_ssm=True) == "triton"
    assert fastest(cuda(torch.float64, d=1024)) == "torch"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fastest() == "triton"


def test_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    mamba_ssm_scan.why_unavailable.cache_clear()
    with pytest.raises(RuntimeError, match=r"mamba-ssm is not available: .*pip install mamba-ssm"):
        selective_scan(*make_inputs(length=2), True, backend="mamba_ssm")
    assert not mamba_ssm_scan.is_fastest(cuda(d=1024), torch.zeros(1024, 16))
    mamba_ssm_scan.why_unavailable.cache_clear()


@pytest.mark.parametrize(
    ("u", "states", "message"),
    [
        (torch.zeros(1, 2, 3), 16, "u is on cpu; allowed .* a CUDA device"),
        (cuda(torch.float64), 16, r"u has dtype torch\.float64; allowed .* float32"),
        (cuda(), 257, r"A has shape \(64, 257\); allowed .* n up to 256"),
        (cuda(d=2**29), 16, "u has 4831838208 elements; allowed .* up to 4294967295"),
    ],
)
def test_what_it_cannot_serve(u, states, message):
    with pytest.raises(ValueError, match=message):
        mamba_ssm_scan._check(u, torch.zeros(64, states))


@pytest.fixture
def convolutions(monkeypatch) -> list[tuple[int, ...]]:
    """Puts a stand-in for causal-conv1d into sys.modules, and returns the kernels it is given.

    The stand-in is causal_conv1d_fn of causal-conv1d 1.4 and later.
    """
    kernels = []

    def causal_conv1d_fn(
        x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
        final_states_out=None, activation=None,
    ):  # fmt: skip
        d, taps = weight.shape
        kernels.append((d, taps))
        assert x.stride(2) == 1 or (x.stride(1) == 1 and x.stride(2) % 8 == d % 8 == 0)
        assert 2 <= taps <= 4
        assert bias.dtype == weight.dtype
        assert activation == "silu"
        y = F.conv1d(F.pad(x, [taps - 1, 0]), weight.unsqueeze(1), bias, groups=d)
        return F.silu(y).to(x.dtype)

    package = ModuleType("causal_conv1d")
    package.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    causal_conv1d.why_unavailable.cache_clear()
    yield kernels
    causal_conv1d.why_unavailable.cache_clear()


@pytest.mark.parametrize(("taps", "taken"), [(1, False), (2, True), (4, True), (5, False)])
def test_mixer_convolves_by_causal_conv1d(calls, convolutions, taps, taken):
    inputs = mixer_inputs(batch=2, length=20, d=5, taps=taps)
    found, expected = run_mixer(inputs, "mamba_ssm"), run_mixer(inputs, "reference")
    assert convolutions == [(5, taps)] * taken
    assert len(calls) == 1
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_causal_conv1d_is_mamba_ssms_alone(calls, convolutions):
    mamba_mixer(*mixer_inputs(length=5), backend="torch")
    assert convolutions == []


def test_mixer_without_causal_conv1d(calls, monkeypatch):
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    causal_conv1d.why_unavailable.cache_clear()
    assert str(causal_conv1d.why_unavailable()).startswith("causal-conv1d is not available: ")
    inputs = mixer_inputs(length=20, d=5)
    found, expected = run_mixer(inputs, "mamba_ssm"), run_mixer(inputs, "reference")
    assert torch.equal(found["y"], expected["y"])
    causal_conv1d.why_unavailable.cache_clear()


def test_auto_mixes_in_triton(calls, monkeypatch):
    """Though there are 1024 channels or, read as u's, 1024 tokens."""
    monkeypatch.setattr(scan_module.triton_scan, "why_unavailable", lambda: None)
    monkeypatch.setattr(mixer_module, "_check", lambda *_: None)
    monkeypatch.setattr(mixer_module, "mamba_mixer_triton", lambda *_: "in Triton")
    monkeypatch.setattr(mixer_module, "plain", lambda x: x)
    assert mamba_mixer(cuda(d=1024), *[None] * 6, torch.zeros(1024, 16), None, None) == "in Triton"
