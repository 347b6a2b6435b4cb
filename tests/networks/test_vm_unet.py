from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.blocks import GatedVSSBlock
from common.checkpoints import convert_checkpoint
from common.networks import VMUNet

from ..conftest import GoldenCase

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 3,
    "depths": (1, 2, 1),
    "decoder_depths": (1, 1, 2),
    "features": (8, 16, 32),
}


def small(**change: Any) -> VMUNet:
    torch.manual_seed(0)
    return VMUNet(**(SMALL | change))


def test_golden():
    case = GoldenCase("vm_unet")
    given = case.arguments
    network = VMUNet(
        given["input_channels"], given["num_classes"], given["depths"], given["depths_decoder"]
    )
    assert sum(p.numel() for p in network.parameters()) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "vm_unet"))
    network.double().eval()
    with torch.no_grad():
        y = network(case.vectors["x"])
    assert (y - case.vectors["y0"]).abs().max() <= case.tolerance


@pytest.mark.parametrize(
    ("change", "parameters"),
    [
        ({"out_channels": 1}, 27_427_561),
        ({"out_channels": 9}, 27_427_761),
        (
            {"depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)},
            pytest.approx(44.27e6, abs=5e3),
        ),
    ],
)
def test_parameters_of_the_released_networks(change: dict, parameters: int):
    with torch.device("meta"):
        network = VMUNet(**({"in_channels": 3, "out_channels": 1} | change))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_logits_for_one_class_too():
    """The release ends in a sigmoid then."""
    several, one = small().eval(), small(out_channels=1).eval()
    weights = several.state_dict()
    of_the_second = {f"head.{name}": weights[f"head.{name}"][1:2] for name in ("weight", "bias")}
    one.load_state_dict(weights | of_the_second)
    x = torch.randn(1, 1, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(one(x), several(x)[:, 1:2])


def test_grey_images_are_repeated_for_three_channels():
    network, x = small(in_channels=3).eval(), torch.randn(2, 1, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("size", [(37, 50), (33, 1), (64, 16)])
def test_odd_sizes_are_padded_by_the_edge_and_cropped(size: tuple[int, int]):
    network, x = small().eval(), torch.rand(1, 1, *size)
    padded = F.pad(x, (0, -size[1] % 16, 0, -size[0] % 16), mode="replicate")
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(y, network(padded)[..., : size[0], : size[1]])
    assert y.shape == (1, 3, *size)


def test_gradients_reach_every_parameter():
    network = small(drop_path=0.0)
    network(torch.randn(1, 1, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_grows_to_the_bottom_and_falls_again():
    network = small(drop_path=0.3)
    rates = [
        [m.drop_path.drop_prob for m in part.modules() if isinstance(m, GatedVSSBlock)]
        for part in (network.encoder, network.decoder)
    ]
    assert rates[0] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates[1] == pytest.approx([0.3, 0.2, 0.1, 0.0])


def test_scripted_equals_eager_at_every_size():
    network = small().double().eval()
    scripted = torch.jit.script(network)
    for size in ((16, 48), (37, 50)):
        x = torch.randn(2, 1, *size, dtype=torch.float64)
        torch.testing.assert_close(scripted(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"features": (8, 16, 24)}, r"features is \(8, 16, 24\); .* each twice the one before"),
        ({"features": ()}, r"features is \(\)"),
        ({"features": (6, 12, 24)}, r"features\[0\] is 6; allowed are multiples of 4"),
        ({"depths": (1, 2)}, "depths has 2 stages; allowed are as many as features', 3"),
        ({"depths": (1, 0, 1)}, r"depths is \(1, 0, 1\)"),
        ({"decoder_depths": (1,)}, "decoder_depths has 1 stages; allowed are as many as"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0; allowed is 0 <= drop_path < 1"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**change)
