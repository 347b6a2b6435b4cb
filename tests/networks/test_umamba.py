import math
from typing import Any

import pytest
import torch
from torch import nn

from common.blocks import Mamba, ResidualBlock, SelfAttention
from common.checkpoints import convert_checkpoint
from common.networks import UMamba
from common.networks.umamba import TokenLayer

from ..conftest import GoldenCase

SMALL: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "features": (8, 16, 16)}
# Every network but release 2's encoder variant with channels for tokens, whose size is one.
KINDS = [
    {"variant": "bottleneck", "release": 1},
    {"variant": "encoder", "release": 1},
    {"variant": "bottleneck", "release": 2},
    {"variant": "encoder", "release": 2, "input_size": (32, 24, 8)},
]
BY_CHANNEL = {"variant": "encoder", "release": 2, "input_size": (8, 12, 8)}  # 12 sites, 16 channels
ONE_BLOCK = {"blocks_per_stage": (1, 1, 1), "blocks_per_decoder_stage": (1, 1)}  # traced sooner


def build(dims: int = 3, **arguments: Any) -> UMamba:
    torch.manual_seed(0)
    if "input_size" in arguments:
        arguments["input_size"] = arguments["input_size"][:dims]
    return UMamba(dims, **(SMALL | arguments))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def golden(name: str) -> tuple[GoldenCase, UMamba]:
    """A case, and the network that its arguments, by the names of the released code, describe."""
    case = GoldenCase(name)
    given = dict(case.arguments)
    network = UMamba(
        spatial_dims=len(given["strides"][0]),
        variant="bottleneck" if "_bot_" in name else "encoder",
        release=1 if "_v1_" in name else 2,
        blocks_per_stage=given.pop("n_conv_per_stage"),
        blocks_per_decoder_stage=given.pop("n_conv_per_stage_decoder"),
        **given,
    )
    return case, network


@pytest.mark.parametrize(
    "name",
    [
        "umamba_bot_2d",
        "umamba_enc_2d",
        "umamba_bot_3d",
        "umamba_enc_3d",
        "umamba_v1_bot_3d",
        "umamba_v1_enc_3d",
    ],
)
def test_golden(name: str):
    case, network = golden(name)
    assert count(network) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "umamba"), strict=True)
    network.double().eval()
    with torch.no_grad():
        logits = network.multiscale_logits(case.vectors["x"])
        assert torch.equal(network(case.vectors["x"]), logits[0])
    assert len(logits) == 3
    for i, y in enumerate(logits):
        assert (y - case.vectors[f"y{i}"]).abs().max() <= case.tolerance


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("variant", "at"), [("bottleneck", 0), ("encoder", 1)])
def test_parameters_of_the_papers_networks(dims: int, variant: str, at: int):
    """With nnU-Net's plans of the abdomen: 13 organs in CT and MR."""
    if dims == 2:
        plan: dict[str, Any] = {
            "strides": [[1, 1], *[[2, 2]] * 6],
            "input_size": [320, 320],
        }
        wanted, millions = (47_533_012, 47_015_538)[at], (63.3, 67.3)[at]
    else:
        plan = {
            "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 5],
            "strides": [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3, [1, 2, 2]],
            "input_size": [40, 224, 192],
        }
        wanted, millions = (41_945_158, 42_842_798)[at], (57.8, 59.1)[at]
    with torch.device("meta"):
        assert count(UMamba(dims, 1, 14, variant, release=2, **plan)) == wanted
        first = count(UMamba(dims, 1, 14, variant, release=1, **plan))
    assert round(first / 1e6, 1) == millions


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [(4, 4, 5), (9, 24, 11), (7, 5, 13)], ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_any_size_from_the_strides_product(dims: int, size: tuple[int, ...], kind: dict):
    network = build(dims, **kind)
    size = size[-dims:]
    with torch.no_grad():
        fine, coarse = network.multiscale_logits(torch.randn(2, 1, *size))
    assert fine.shape == (2, 3, *size)
    assert coarse.shape == (2, 3, *(math.ceil(n / 2) for n in size))


@pytest.mark.parametrize("release", [1, 2])
@pytest.mark.parametrize("size", [(3, 8, 8), (4, 4, 4)], ids=str)
def test_images_too_small_are_named(release: int, size: tuple[int, ...]):
    message = rf"x has size \[{', '.join(map(str, size))}\]; allowed are sizes from \[4, 4, 4\]"
    with pytest.raises(ValueError, match=message):
        build(release=release)(torch.randn(1, 1, *size))


def test_channels_as_tokens_fit_one_size():
    """12 sites in the deepest stage, of 16 channels."""
    network = build(**BY_CHANNEL)
    layers = [stage.layer for stage in network.encoder]
    assert [layer.channel_tokens for layer in layers] == [False, False, True]
    assert [layer.norm.normalized_shape for layer in layers] == [(8,), (16,), (12,)]
    assert network(torch.randn(1, 1, 8, 12, 8)).shape == (1, 3, 8, 12, 8)
    # The second has as many sites, in another order.
    for size in ((16, 12, 8), (12, 8, 8), (8, 12, 7)):
        found, allowed = (r"\[" + ", ".join(map(str, x)) + r"\]" for x in (size, (8, 12, 8)))
        with pytest.raises(ValueError, match=rf"x has size {found}; allowed is {allowed}, the"):
            network(torch.randn(1, 1, *size))


@pytest.mark.parametrize(
    ("kind", "dims", "places"),
    [
        ({"variant": "bottleneck", "release": 1}, 3, [2]),
        ({"variant": "bottleneck", "release": 2}, 2, [2]),
        ({"variant": "encoder", "release": 1}, 2, [0, 1, 2]),
        ({"variant": "encoder", "release": 2, "input_size": (16, 16, 16)}, 3, [0, 1, 2]),
        ({"variant": "encoder", "release": 2, "input_size": (32, 32)}, 2, [0, 2]),
    ],
)
def test_where_mamba_is(kind: dict, dims: int, places: list[int]):
    network = build(dims, **kind)
    assert [s for s, x in enumerate(network.encoder) if isinstance(x.layer, TokenLayer)] == places
    assert sum(isinstance(module, Mamba) for module in network.modules()) == len(places)


@pytest.mark.parametrize("dims", [2, 3])
def test_release_2_has_fewer_blocks_and_in_2d_no_finest_skip(dims: int):
    with torch.device("meta"):
        network = UMamba(dims, 1, 3, strides=[[1] * dims, *[[2] * dims] * 6])
        first = UMamba(dims, 1, 3, release=1, blocks_per_stage=(1, 2, 3, 1, 2, 3))
    assert len(network.stem) == 2
    assert [len(stage.blocks) for stage in network.encoder] == [2, 2, 2, 2, 1, 1, 1]
    assert [len(stage.blocks) for stage in network.decoder] == [2, 2, 2, 2, 1, 1]
    assert [stage.joined for stage in network.decoder] == [True] * 5 + [dims == 3]
    assert [len(stage.blocks) for stage in first.encoder] == [1, 2, 3, 1, 2, 3]
    assert [len(stage.blocks) for stage in first.decoder] == [2] * 5
    assert all(stage.joined for stage in first.decoder)


@pytest.mark.parametrize("kind", [*KINDS, BY_CHANNEL], ids=str)
def test_deep_supervision_in_training_only(kind: dict):
    x = torch.randn(1, 1, *kind.get("input_size", (8, 16, 8)), dtype=torch.float64)
    network = build(**kind, deep_supervision=True).double()
    logits = network(x)
    sizes = [list(x.shape[2:]), [n // 2 for n in x.shape[2:]]]
    assert [list(y.shape) for y in logits] == [[1, 3, *size] for size in sizes]
    with torch.no_grad():
        torch.testing.assert_close(network(x), logits[0])
    torch.testing.assert_close(build(**kind).double()(x), logits[0])  # by default the finest alone


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [*KINDS, BY_CHANNEL], ids=str)
def test_gradients_reach_every_parameter(kind: dict, dims: int):
    network = build(dims, **kind, deep_supervision=True)
    size = kind.get("input_size", (8, 16, 8))[:dims]
    sum(y.square().mean() for y in network(torch.randn(2, 1, *size))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_initial_weights_are_the_releases():
    for kind in KINDS:
        network = build(2, **kind, features=(16, 64, 64))
        conv = network.encoder[1].blocks[1 if kind["release"] == 1 else 0].conv2
        expected = math.sqrt(2 / (1 + 1e-4) / (9 * 64))
        assert conv.conv.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not conv.conv.bias.any()
        zeroed = kind["variant"] == "encoder" and kind["release"] == 1
        blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
        assert all((block.conv2.norm.weight == (not zeroed)).all() for block in blocks)
        mamba = network.encoder[-1].layer.mixer
        assert (mamba.D == 1).all()  # Mamba's own


@pytest.mark.usefixtures("whole_convolutions")
@pytest.mark.parametrize("kind", [KINDS[1], BY_CHANNEL], ids=str)
def test_mamba_stays_in_float32_under_autocast(kind: dict):
    network = build(**kind, deep_supervision=True)
    seen = []
    for module in network.modules():
        if isinstance(module, Mamba):
            module.register_forward_hook(lambda _, args, y: seen.extend((args[0].dtype, y.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(100 * torch.randn(1, 1, 8, 12, 8))
    assert seen == [torch.float32] * 6
    assert logits[0].dtype == torch.bfloat16  # autocast was on elsewhere
    sum(y.float().square().mean() for y in logits).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("mixer", ["mamba", "identity", "conv", "attention"])
@pytest.mark.parametrize("kind", [*KINDS, BY_CHANNEL], ids=str)
def test_mixers(kind: dict, mixer: str):
    """Whose twins take any size, and have sites for tokens."""
    network = build(**kind, mixer=mixer)
    found = [type(module) for module in network.modules()]
    layers = 1 if kind["variant"] == "bottleneck" else 3
    attentions = 1 if mixer == "attention" else 0
    assert found.count(SelfAttention) == attentions
    assert found.count(Mamba) == {"mamba": layers, "attention": layers - 1}.get(mixer, 0)
    plain = build(**kind, mixer="identity")
    assert (count(network) > count(plain)) == (mixer != "identity")
    if mixer != "mamba":
        assert network(torch.randn(1, 1, 9, 8, 11)).shape == (1, 3, 9, 8, 11)
        assert not any(getattr(module, "channel_tokens", False) for module in network.modules())


@pytest.mark.parametrize(
    ("kind", "mixer"),
    [
        *((kind, "mamba") for kind in KINDS),
        *((KINDS[3], x) for x in ("identity", "conv", "attention")),
    ],
    ids=str,
)
def test_scripted_equals_eager_at_every_size(kind: dict, mixer: str):
    # In double: the two run different backends in float32.
    network = build(**kind, **ONE_BLOCK, mixer=mixer).double().eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((8, 16, 8), (5, 11, 9)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(torch.jit.Error, match=r"x has size \[2, 4, 4\]; allowed are"):
        scripted(torch.randn(1, 1, 2, 4, 4, dtype=torch.float64))


def test_scripted_of_one_size():
    network = build(2, **BY_CHANNEL).double().eval()
    scripted = torch.jit.script(network)
    x = torch.randn(1, 1, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(torch.jit.Error, match=r"x has size \[12, 8\]; allowed is \[8, 12\]"):
        scripted(x.mT)


@pytest.mark.parametrize("kind", [KINDS[0], BY_CHANNEL], ids=str)
def test_compiles_into_one_graph(kind: dict):
    network = build(**kind, **ONE_BLOCK).eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = torch.randn(1, 1, 8, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; allowed are 2 and 3"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"variant": "decoder"}, "variant is 'decoder'; allowed are 'bottleneck' and 'encoder'"),
        ({"release": 3}, "release is 3; allowed are 1 and 2"),
        ({"features": (8,)}, r"features is \[8\]; allowed are"),
        ({"features": (8, 0, 16)}, r"features is \[8, 0, 16\]"),
        (
            {"features": (8, 12, 12), "mixer": "attention"},
            r"features\[-1\] is 12; allowed with attention are multiples of 8",
        ),
        (
            {"strides": [[1, 1, 1], [2, 2, 2]]},
            "strides has 2 stages; allowed for a network of 3 are 3",
        ),
        ({"kernel_sizes": [[3, 3, 3]] * 4}, "kernel_sizes has 4 stages"),
        ({"blocks_per_stage": (2, 2)}, "blocks_per_stage has 2 stages; .* are 3"),
        ({"blocks_per_decoder_stage": (2, 2, 2)}, "blocks_per_decoder_stage has 3 .* are 2"),
        ({"blocks_per_stage": (2, 0, 2)}, r"blocks_per_stage is \[2, 0, 2\]"),
        ({"blocks_per_decoder_stage": (0, 2)}, r"blocks_per_decoder_stage is \[0, 2\]"),
        ({"strides": [[2, 2, 2]] * 3}, r"strides\[0\] is \[2, 2, 2\]"),
        ({"strides": [[1, 1, 1], [2, 2], [2, 2, 2]]}, r"strides\[1\] is \[2, 2\]; .* 3 whole"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [0, 2, 2]]}, r"strides\[2\] is \[0, 2, 2\]"),
        ({"kernel_sizes": [[3, 3, 3], [3, 2, 3], [3, 3, 3]]}, r"kernel_sizes\[1\] is \[3, 2, 3\]"),
        ({"variant": "encoder"}, "input_size is None; needed in release 2's encoder variant are 3"),
        ({"variant": "encoder", "input_size": (8, 8)}, r"input_size is \[8, 8\]; needed"),
        ({"variant": "encoder", "input_size": (8, 0, 8)}, r"input_size is \[8, 0, 8\]; needed"),
        (
            {"variant": "encoder", "input_size": (8, 6, 8)},
            r"input_size is \[8, 6, 8\]; allowed, .*, are multiples of \[4, 4, 4\], and larger",
        ),
        ({"variant": "encoder", "input_size": (2, 2, 2)}, r"input_size is \[2, 2, 2\]; allowed"),
        ({"variant": "encoder", "input_size": (4, 4, 4)}, r"input_size is \[4, 4, 4\]; allowed"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UMamba(**({"spatial_dims": 3} | SMALL | change))
