import pytest
import torch

from common.networks import VMambaEncoder

SMALL = {"channels": 16, "depths": (1, 1, 1, 1)}


def test_maps_halve_and_double():
    encoder = VMambaEncoder(2, **SMALL)
    maps = encoder(torch.randn(2, 2, 50, 38))
    assert [tuple(y.shape) for y in maps] == [
        (2, 16, 13, 10),
        (2, 32, 7, 5),
        (2, 64, 4, 3),
        (2, 128, 2, 2),
    ]
    assert encoder.channels == [16, 32, 64, 128]


def test_stochastic_depth_grows_to_its_last_block():
    encoder = VMambaEncoder(1, channels=16, depths=(1, 2), drop_path=0.2)
    rates = [block.drop_path.drop_prob for stage in encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"channels": 7}, "channels is 7; allowed are even numbers from 2"),
        ({"depths": (2, 0)}, r"depths is \(2, 0\)"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0; allowed is 0 <= drop_path < 1"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        VMambaEncoder(**argument)
