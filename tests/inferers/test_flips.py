import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import Tensor

from common.inferers import FlipInferer


def ramp(x: Tensor) -> Tensor:
    """Logits that depend on where a voxel is, and so on how the image is turned."""
    places = torch.arange(float(x[0, 0].numel())).view(x.shape[2:])
    return torch.cat([x * places, x + places], dim=1)


def test_mean_over_the_flips_of_two_axes():
    x = torch.rand(2, 1, 3, 4, 5)
    flips: list[list[int]] = [[], [2], [4], [2, 4]]
    expected = torch.stack([ramp(x.flip(flip)).flip(flip) for flip in flips]).mean(0)
    torch.testing.assert_close(FlipInferer(SimpleInferer(), [0, 2])(x, ramp), expected)


def test_without_axes_it_is_the_other_inferer():
    x = torch.rand(1, 1, 3, 4)
    assert torch.equal(FlipInferer(SimpleInferer(), [])(x, ramp), ramp(x))


@pytest.mark.parametrize(
    ("inferer", "axes"),
    [
        (SlidingWindowInferer((4, 4, 4), overlap=0.5, mode="gaussian"), [0, 1, 2]),
        (SliceInferer(roi_size=(6, 5), spatial_dim=2), [0, 1]),
    ],
)
def test_logits_turn_with_the_image(inferer, axes):
    """What the mean is for: a mirrored image has the mirrored logits, whatever the network."""
    averaged = FlipInferer(inferer, axes)
    x = MetaTensor(torch.rand(1, 1, 6, 5, 7))
    y = averaged(x, ramp)
    assert y.shape == (1, 2, 6, 5, 7)
    torch.testing.assert_close(averaged(x.flip(2), ramp), y.flip(2))
    assert not torch.allclose(inferer(x.flip(2), ramp), inferer(x, ramp).flip(2))


def test_arguments_reach_the_network():
    def scaled(x: Tensor, factor: float) -> Tensor:
        return factor * x

    x = torch.rand(1, 1, 2, 2)
    torch.testing.assert_close(FlipInferer(SimpleInferer(), [1])(x, scaled, factor=3.0), 3 * x)


@pytest.mark.parametrize("axes", [[0, 0], [-1]])
def test_bad_axes_are_named(axes: list[int]):
    with pytest.raises(ValueError, match="allowed are different numbers from 0"):
        FlipInferer(SimpleInferer(), axes)
