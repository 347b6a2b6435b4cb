import sys

import pytest
import torch

from common.blocks import SS2D
from common.ops import selective_scan_2d

# VMamba's second version and its first.
VERSIONS = [{}, {"d_state": 16, "gate": True, "conv_bias": True}]


@pytest.mark.parametrize("version", VERSIONS)
def test_scripted_block_equals_the_block(version):
    block = SS2D(16, **version).double()
    x = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_first_version_equals_float64(backend):
    torch.manual_seed(0)
    block, x = SS2D(16, **VERSIONS[1], backend=backend), torch.randn(2, 9, 7, 16)
    y = block(x)
    block.backend = "reference"
    torch.testing.assert_close(y.double(), block.double()(x.double()), rtol=1e-4, atol=1e-5)


def test_gate_and_bias_are_what_the_first_version_adds():
    second, first = (
        {name: tuple(x.shape) for name, x in SS2D(32, **version).named_parameters()}
        for version in ({"d_state": 16}, VERSIONS[1])
    )
    added = {"in_proj.weight": (128, 32), "conv2d.bias": (64,)}
    assert first == second | added


def test_a_closed_gate_lets_nothing_through():
    block = SS2D(16, **VERSIONS[1])
    with torch.no_grad():
        block.in_proj.weight[32:] = 0
    assert not block(torch.randn(1, 4, 4, 16)).any()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_parameter_gets_a_gradient(version):
    block = SS2D(16, **version)
    block(torch.randn(1, 6, 4, 16)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_scan_gets_channels_next_to_each_other(monkeypatch, batch, version):
    strides = []

    def spy(u, delta, *args, **kwargs):
        strides.append((u.stride(), delta.stride()))
        return selective_scan_2d(u, delta, *args, **kwargs)

    monkeypatch.setattr(sys.modules[SS2D.__module__], "selective_scan_2d", spy)
    SS2D(16, **version)(torch.randn(batch, 5, 7, 16))
    per_map = 5 * 7 * 32
    u, delta = (per_map, 1, 7 * 32, 32), (per_map, batch * per_map, 1, 7 * 32, 32)
    assert strides == [(u, delta)]


@pytest.mark.parametrize("name", ["channels", "d_state", "expand"])
def test_bad_argument_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SS2D(**{"channels": 16, name: 0})


def test_what_float16_cannot_hold_under_autocast():
    """An input projection beyond 65,504: not a number, where autocast reached into the mixer."""
    torch.manual_seed(0)
    mixer, x = SS2D(8), torch.randn(1, 5, 6, 8)
    with torch.no_grad():
        mixer.in_proj.weight.mul_(3e5)
        mixer.x_proj_weight.div_(3e5)
    expected = mixer(x)
    with torch.autocast("cpu", dtype=torch.float16):
        y = mixer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
