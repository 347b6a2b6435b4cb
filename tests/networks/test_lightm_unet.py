import pytest
import torch

from common.checkpoints import convert_checkpoint
from common.networks import LightMUNet
from common.networks.lightm_unet import MambaLayer, TwinLayer

from ..conftest import GoldenCase

SMALL = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "init_filters": 8}


@pytest.mark.parametrize("name", ["lightm_unet_2d", "lightm_unet_3d"])
def test_golden(name: str):
    case = GoldenCase(name)
    network = LightMUNet(**case.arguments)
    assert sum(p.numel() for p in network.parameters()) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "lightm_unet"), strict=True)
    network.double().eval()
    with torch.no_grad():
        y = network(case.vectors["x"])
    assert (y - case.vectors["y0"]).abs().max() <= case.tolerance


def test_parameters_of_the_papers_3d_network():
    assert sum(p.numel() for p in LightMUNet(3, 1, 3).parameters()) == 5_015_766


@pytest.mark.parametrize(
    ("dims", "size"), [(2, (8, 8)), (2, (37, 50)), (3, (8, 8, 8)), (3, (19, 16, 9))]
)
def test_any_size_from_eight(dims: int, size: tuple[int, ...]):
    network = LightMUNet(dims, 2, 4, init_filters=8)
    assert network(torch.randn(1, 2, *size)).shape == (1, 4, *size)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = LightMUNet(**SMALL)
    network(torch.randn(1, 1, 16, 8, 8)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("mixer", "kinds"),
    [
        ("mamba", {MambaLayer: 21}),
        ("conv", {TwinLayer: 21}),
        ("identity", {TwinLayer: 21}),
        ("attention", {MambaLayer: 13, TwinLayer: 8}),
    ],
)
def test_mixer_ablation(mixer: str, kinds: dict[type, int]):
    network = LightMUNet(**SMALL, mixer=mixer)
    found = [type(m) for m in network.modules() if isinstance(m, MambaLayer)]
    assert {kind: found.count(kind) for kind in set(found)} == kinds
    assert network(torch.randn(1, 1, 16, 16, 8)).shape == (1, 3, 16, 16, 8)


def test_residual_and_skip_scale_ablations():
    full, fixed, without = (
        LightMUNet(**SMALL, **arguments)
        for arguments in ({}, {"skip_scale": False}, {"residual": False})
    )
    missing = full.state_dict().keys() - fixed.state_dict().keys()
    assert len(missing) == 21
    assert all(name.endswith("skip_scale") and "encoder" in name for name in missing)
    assert fixed.state_dict().keys() == without.state_dict().keys()

    x = torch.randn(1, 1, 8, 8, 8)
    for network in (fixed, without):
        network.load_state_dict(full.state_dict(), strict=False)
        network.eval()
    with torch.no_grad():
        torch.testing.assert_close(fixed(x), full.eval()(x))  # skip_scale starts at 1
        assert not torch.allclose(without(x), full(x))


def test_dropout_in_training_only():
    torch.manual_seed(0)
    network = LightMUNet(**SMALL, dropout=0.5)
    assert network.state_dict().keys() == LightMUNet(**SMALL).state_dict().keys()
    x = torch.randn(1, 1, 8, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("mixer", ["mamba", "identity", "conv", "attention"])
def test_scripted_equals_eager_at_every_size(mixer: str):
    # In double: the two run different backends in float32, and the network amplifies rounding.
    network = LightMUNet(**SMALL, mixer=mixer).double().eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((16, 16, 8), (9, 24, 11)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)
    if mixer == "mamba":  # also where nobody has turned gradients off
        torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("eager", torch.float32),
        ("aot_eager", torch.float32),
        # It rounds otherwise, and the network amplifies rounding.
        pytest.param("inductor", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_compiles_into_one_graph(backend: str, dtype: torch.dtype):
    torch.manual_seed(0)
    network = LightMUNet(**SMALL, blocks_down=(1, 1), blocks_up=(1,)).to(dtype)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = torch.randn(1, 1, 16, 8, 8, dtype=dtype)
    y, expected = compiled(x), network(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    found, truth = (
        torch.cat([g.flatten() for g in torch.autograd.grad(y.sum(), list(network.parameters()))])
        for y in (y.square(), expected.square())
    )
    assert (found - truth).norm() < 1e-4 * truth.norm()


@pytest.mark.parametrize(
    ("dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_maps_stay_channels_last(dims: int, layout: torch.memory_format, batch: int):
    network = LightMUNet(dims, 2, 3, init_filters=8)
    maps = network.encode(torch.randn(batch, 2, *(16, 24, 8)[:dims]))
    maps.append(network.decode(maps))
    assert all(x.is_contiguous(memory_format=layout) for x in maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; allowed are 2 and 3"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"init_filters": 12}, "init_filters is 12; allowed are multiples of 8"),
        ({"blocks_up": (1, 1)}, "blocks_up has 2 levels; allowed is one fewer"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LightMUNet(**(SMALL | change))
