import pytest
import torch

from common.blocks import SS2D


def test_scripted_block_equals_the_block():
    block = SS2D(16).double()
    x = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))


def test_every_parameter_gets_a_gradient():
    block = SS2D(16)
    block(torch.randn(1, 6, 4, 16)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["channels", "d_state", "expand"])
def test_bad_argument_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SS2D(**{"channels": 16, name: 0})
