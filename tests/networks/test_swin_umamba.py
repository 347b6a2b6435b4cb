from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks import GatedVSSBlock
from common.checkpoints import convert_checkpoint
from common.networks import SwinUMamba

from ..conftest import GoldenCase

DECODERS = ("convolution", "mamba")
SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 3,
    "depths": (1, 1, 2),
    "features": (8, 16, 32),
}
STEPS = {"convolution": (1, 2, 4), "mamba": (1, 4, 8)}  # of three stages' scales


def small(**change: Any) -> SwinUMamba:
    torch.manual_seed(0)
    return SwinUMamba(**(SMALL | change))


@pytest.mark.parametrize(
    ("name", "decoder"), [("swin_umamba", "convolution"), ("swin_umamba_d", "mamba")]
)
def test_golden(name: str, decoder: str):
    case = GoldenCase(name)
    given = case.arguments
    network = SwinUMamba(
        given["in_chans"],
        given["out_chans"],
        decoder,
        given.get("depths", (2, 2, 9, 2)),
        given.get("dims", (96, 192, 384, 768)),
    )
    assert sum(p.numel() for p in network.parameters()) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "swin_umamba"))
    network.double().eval()
    with torch.no_grad():
        scales = network.multiscale_logits(case.vectors["x"])
        finest = network(case.vectors["x"])
    assert torch.equal(finest, scales[0])
    assert len(scales) == len(case.vectors) - 1
    for i, y in enumerate(scales):
        assert (y - case.vectors[f"y{i}"]).abs().max() <= case.tolerance


@pytest.mark.parametrize(
    ("decoder", "parameters"), [("convolution", 59_889_368), ("mamba", 27_497_720)]
)
def test_parameters_of_the_papers_networks_for_mr(decoder: str, parameters: int):
    with torch.device("meta"):
        network = SwinUMamba(1, 14, decoder)
    assert sum(p.numel() for p in network.parameters()) == parameters


def scales_of(network: SwinUMamba, x: Tensor) -> list[Tensor]:
    y = network(x)
    assert isinstance(y, list)
    return y


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_sees_every_scale(decoder: str):
    network, x = small(decoder=decoder), torch.randn(2, 1, 32, 48)
    sizes = [(2, 3, 32 // step, 48 // step) for step in STEPS[decoder]]
    assert [tuple(y.shape) for y in scales_of(network, x)] == sizes
    with torch.no_grad():
        assert network(x).shape == sizes[0]
    assert network.eval()(x).shape == sizes[0]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(37, 50), (33, 1)])
def test_odd_sizes_are_padded_by_the_edge_and_cropped(decoder: str, size: tuple[int, int]):
    network, x = small(decoder=decoder).eval(), torch.rand(1, 1, *size)
    height, width = size
    padded = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    with torch.no_grad():
        scales, whole = network.multiscale_logits(x), network.multiscale_logits(padded)
        torch.testing.assert_close(network(x), scales[0])
    for step, y, of_padded in zip(STEPS[decoder], scales, whole, strict=True):
        rows, columns = (height + step - 1) // step, (width + step - 1) // step
        assert y.shape == (1, 3, rows, columns)
        torch.testing.assert_close(y, of_padded[..., :rows, :columns])


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_reach_every_parameter(decoder: str):
    network = small(decoder=decoder, drop_path=0.0)
    scales = scales_of(network, torch.randn(1, 1, 32, 32))
    torch.stack([y.square().mean() for y in scales]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name != "stem.0.bias":  # which the norm after it takes away again
            assert parameter.grad.abs().sum() > 0, name


def test_stochastic_depth_grows_to_the_bottom_and_falls_again():
    network = small(decoder="mamba", drop_path=0.3)
    rates = [
        [m.drop_path.drop_prob for m in part.modules() if isinstance(m, GatedVSSBlock)]
        for part in (network.encoder, network.decoder)
    ]
    assert rates[0] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates[1] == pytest.approx([0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_scripted_equals_eager_at_every_size(decoder: str):
    network = small(decoder=decoder).double().eval()
    scripted = torch.jit.script(network)
    for size in ((16, 48), (37, 50)):
        x = torch.randn(2, 1, *size, dtype=torch.float64)
        torch.testing.assert_close(scripted(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"decoder": "swin"}, "decoder is 'swin'; allowed are 'convolution' and 'mamba'"),
        ({"features": (8,)}, r"features is \(8,\); allowed are two stages or more"),
        ({"features": (5, 10, 20)}, r"features is \(5, 10, 20\); .* of an even number"),
        ({"features": (8, 8, 16)}, r"features is \(8, 8, 16\); .* each twice the one before"),
        ({"depths": (1, 2)}, "depths has 2 stages; allowed are as many as features', 3"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**change)
