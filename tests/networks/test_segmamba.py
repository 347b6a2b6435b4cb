from typing import Any

import pytest
import torch

from common.checkpoints import convert_checkpoint
from common.networks import SegMamba

from ..conftest import GoldenCase

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 3,
    "depths": (1, 1, 2, 1),
    "features": (4, 6, 8, 12),
    "hidden_size": 8,
}


def small(**change: Any) -> SegMamba:
    torch.manual_seed(0)
    return SegMamba(**(SMALL | change))


def test_golden():
    case = GoldenCase("segmamba")
    given = case.arguments
    network = SegMamba(
        given["in_chans"],
        given["out_chans"],
        given["depths"],
        given["feat_size"],
        given["hidden_size"],
    )
    assert sum(p.numel() for p in network.parameters()) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "segmamba"))
    network.double().eval()
    with torch.no_grad():
        y = network(case.vectors["x"])
    assert (y - case.vectors["y0"]).abs().max() <= case.tolerance


def test_parameters_of_the_released_network_for_brats():
    with torch.device("meta"):
        network = SegMamba(4, 4)
    assert sum(p.numel() for p in network.parameters()) == 67_416_196


@pytest.mark.parametrize("size", [(32, 32, 32), (16, 16, 128), (48, 32, 64)])
def test_sizes_whose_sequences_can_be_cut(size: tuple[int, ...]):
    with torch.no_grad():
        assert small()(torch.randn(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(48, 48, 48), (32, 32, 40), (8, 32, 64), (16, 32, 32)])
def test_other_sizes_are_refused(size: tuple[int, ...]):
    message = rf"x has size \[{size[0]}, {size[1]}, {size[2]}\]; allowed are multiples of 16 whose"
    with pytest.raises(ValueError, match=message):
        small()(torch.randn(1, 1, *size))


def test_gradients_reach_every_parameter():
    network = small()
    network(torch.randn(1, 1, 32, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not (".spatial." in name and name.endswith("bias")):  # which a norm takes away again
            assert parameter.grad.abs().sum() > 0, name


def test_scripted_equals_eager_at_every_size():
    network = small().double().eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((32, 32, 32), (16, 32, 64)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"depths": (1, 1, 1)}, r"depths is \(1, 1, 1\); allowed are 4 whole numbers from 1"),
        ({"features": (4, 8, 0, 8)}, r"features is \(4, 8, 0, 8\); allowed are 4 whole numbers"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**change)
