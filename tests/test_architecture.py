"""The figures of the bundles' networks: what is drawn is what the networks do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import architecture
from benchmarks.architecture import Stage, as_text, draw, of_bundle, trace
from common.blocks import SS2D, Mamba
from common.errors import InputError
from common.networks import CodebookMambaUNet, ELANResMSCAUNet, LightMUNet, VMUNet

from .conftest import REPOSITORY
from .test_bundles import parser

SKIN = REPOSITORY / "bundles/skin_lesion_rgb_vm_unet_segmentation"
HIPPOCAMPUS = REPOSITORY / "bundles/hippocampus_mr_lightm_unet_segmentation"


class Toy(nn.Module):
    """Stages that something happens between, one without a skip, and a head of training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Conv2d(2, 2, 3, 2, 1) for _ in range(3))
        self.decoder = nn.Conv2d(2, 4, 1)
        self.heads = nn.ModuleList(nn.Conv2d(4, 3, 1) for _ in range(2))

    def maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.encoder:
            x = stage(x.relu())
            maps.append(x.permute(0, 2, 3, 1))
        return maps

    def decoded(self, x: Tensor) -> Tensor:
        _, middle, deepest = self.maps(x)
        y = torch.cat([deepest, deepest], 1).repeat(1, 1, 2, 1)
        return self.decoder((y + middle).permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[1](self.decoded(x)) + 1

    def multiscale_logits(self, x: Tensor) -> list[Tensor]:
        y = self.decoded(x)
        return [head(y) for head in self.heads]


TOY = {"encoder": r"encoder\.(\d+)", "decoder": "decoder", "head": r"heads\.(\d+)"}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    monkeypatch.setitem(architecture.STAGES, Toy, TOY)
    return trace(Toy(), (2, 32, 16))


def by_name(stages: list[Stage]) -> dict[str, Stage]:
    found = {stage.name: stage for stage in stages}
    assert len(found) == len(stages)
    return found


def shape(stage: Stage) -> tuple[int, ...]:
    return (stage.channels, *stage.grid)


def of_config(bundle: Path) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = parser(bundle, "train").get_parsed_content("network_def")
    return network.eval()


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def test_stages_and_their_inputs_by_hand(toy: list[Stage]):
    convolution = {"convolution": 1}
    encoder = ("encoder", 2)
    rest = (convolution, "convolution")
    assert toy == [
        Stage("image", "image", 2, (32, 16), {}, None, (), False),
        Stage("encoder 0", *encoder, (16, 8), *rest, ("image",), False),
        Stage("encoder 1", *encoder, (8, 4), *rest, ("encoder 0",), False),
        Stage("encoder 2", *encoder, (4, 2), *rest, ("encoder 1",), False),
        Stage("decoder", "decoder", 4, (8, 4), *rest, ("encoder 1", "encoder 2"), False),
        Stage("head 1", "head", 3, (8, 4), *rest, ("decoder",), False),
        Stage("head 0", "head", 3, (8, 4), *rest, ("decoder",), True),
    ]


@torch.no_grad()
def test_a_3d_bundles_stages_are_what_its_network_does():
    network = of_config(HIPPOCAMPUS)
    assert isinstance(network, LightMUNet)
    stages = by_name(of_bundle(HIPPOCAMPUS))
    image = torch.randn(1, *shape(stages["image"]))
    assert image.shape == (1, 1, 40, 56, 40)  # the README's patch
    maps = network.encode(image)
    assert [shape(stages[f"encoder {i}"]) for i in range(4)] == [y.shape[1:] for y in maps]
    assert shape(stages["stem"]) == network.stem(image).shape[1:]
    below, y = "encoder 3", maps[3]
    for i, level in enumerate(network.decoder):
        y = level(y, maps[2 - i])
        name = f"decoder {i}"
        assert shape(stages[name]) == y.shape[1:]
        assert stages[name].inputs == (f"encoder {2 - i}", below)
        assert stages[name].blocks == {"separable convolution": 1}
        below = name
    assert shape(stages["head"]) == network(image).shape[1:]
    assert stages["head"].inputs == (below,)
    for i, encoder in enumerate(network.encoder):
        assert stages[f"encoder {i}"].blocks == {"Mamba": count(encoder, Mamba)}
        assert stages[f"encoder {i}"].family == "Mamba"
    assert len(stages) == 1 + 1 + 4 + 3 + 1
    assert not any(stage.in_training_alone for stage in stages.values())


@torch.no_grad()
def test_a_2d_bundles_stages_are_what_its_network_does():
    network = of_config(SKIN)
    assert isinstance(network, VMUNet)
    stages = by_name(of_bundle(SKIN))
    seen: dict[str, torch.Size] = {}
    for i, decoder in enumerate(network.decoder):
        decoder.register_forward_hook(
            lambda _, __, y, name=f"decoder {i}": seen.update({name: y.shape[1:]})
        )
    image = torch.rand(1, *shape(stages["image"]))
    assert image.shape == (1, 3, 256, 256)
    logits = network(image)
    entered, left = network.encoder(image)
    for i, (before, after) in enumerate(zip(entered, left, strict=True)):
        assert shape(stages[f"encoder {i}"]) == before.shape[1:] == after.shape[1:]
        assert stages[f"encoder {i}"].blocks == {
            "2D Mamba (SS2D)": count(network.encoder.stages[i], SS2D)
        }
    assert {name: shape(stages[name]) for name in seen} == seen
    assert shape(stages["head"]) == logits.shape[1:]
    # The finest of the encoder's maps, which the paper's figure joins, is joined nowhere.
    assert {name: stage.inputs for name, stage in stages.items()} == {
        "image": (),
        "encoder 0": ("image",),
        "encoder 1": ("encoder 0",),
        "encoder 2": ("encoder 1",),
        "encoder 3": ("encoder 2",),
        "decoder 0": ("encoder 3",),
        "decoder 1": ("encoder 3", "decoder 0"),
        "decoder 2": ("encoder 2", "decoder 1"),
        "decoder 3": ("encoder 1", "decoder 2"),
        "final up": ("decoder 3",),
        "head": ("final up",),
    }


def test_blocks_are_those_of_the_network():
    """A twin's, and an ablation's, are others; what does nothing is no stage."""
    attention = by_name(trace(LightMUNet(2, 1, 2, 8, (1, 1), (1,), mixer="attention"), (1, 16, 16)))
    assert attention["encoder 0"].blocks == {"Mamba": 2}
    assert attention["encoder 1"].blocks == {"Mamba": 1, "self-attention": 2}
    whole = by_name(trace(CodebookMambaUNet(1, 2, (4, 4)), (1, 16, 16, 8)))
    assert whole["codebook"].family == "codebook"
    assert whole["mixer"].blocks == {"Mamba": 1}
    assert whole["decoder 0"].inputs == ("encoder 1", "mixer")
    assert whole["decoder 0"].blocks == {"convolution": 2}
    bare = by_name(
        trace(CodebookMambaUNet(1, 2, (4, 4), codebook=False, mixer="identity"), (1, 16, 16, 8))
    )
    assert bare["decoder 0"].inputs == ("encoder 1", "encoder 2")
    assert bare.keys() == whole.keys() - {"codebook", "mixer"}


def test_the_traced_network_stays_as_it_is():
    network = ELANResMSCAUNet(1, 1, (4, 4, 4, 4, 4)).train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    stages = by_name(trace(network, (1, 32, 32, 16)))
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert not any(module._forward_hooks for module in network.modules())
    assert stages["encoder 0"].blocks == {"ELANRes block": 1, "MSCA block": 1}
    heads = {name: stages[f"head {name}"].in_training_alone for name in range(4)}
    assert heads == {0: True, 1: True, 2: True, 3: False}


def test_networks_without_stages_are_refused():
    with pytest.raises(InputError, match=r"The stages of Conv2d are not known; allowed are Codebo"):
        trace(nn.Conv2d(1, 1, 1), (1, 8, 8))


def test_the_figure_has_what_is_drawn(toy: list[Stage], tmp_path: Path):
    path = tmp_path / "figure.png"
    draw(toy, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        text = image.text[architecture.TEXT]
        width, height = image.size
        corner = image.convert("RGB").getpixel((0, 0))
    assert min(corner) > 250, "dark pages have to leave it white"
    assert text == as_text(toy)
    assert [x["name"] for x in json.loads(text)] == [stage.name for stage in toy]
    assert 1000 < width < 3000
    assert 300 < height < 3000
    with pytest.raises(InputError, match=r"The figure .*none/figure\.png cannot be written"):
        draw(toy, tmp_path / "none/figure.png")


def test_arrows_go_around_boxes(toy: list[Stage]):
    """Across and then up where nothing stands, else straight; each ends at its box's edge."""
    layout = architecture._Layout(toy[:-1])  # its two heads have one cell
    stages = layout.stages
    rows, columns = layout.vertical, layout.horizontal
    middle = [sum(row) / 2 for row in rows]
    (x0, y0), (x1, y1), (x2, y2) = layout.way(stages["encoder 2"], stages["decoder"])
    assert (x0, y0) == (columns[1][1], middle[3])
    assert (x1, y1) == (sum(columns[2]) / 2, middle[3])
    assert (x2, y2) == (x1, rows[2][1])
    (x0, y0), (x1, y1) = layout.way(stages["encoder 1"], stages["decoder"])
    assert (x0, y0, x1, y1) == (columns[1][1], middle[2], columns[2][0], middle[2])
    (x0, y0), (x1, y1) = layout.way(stages["encoder 0"], stages["encoder 1"])
    assert (x0, y0, x1, y1) == (x0, rows[1][1], x0, rows[2][0])
    beside = layout.stages["encoder 2"]._replace(column="decoder", name="in the way")
    crowded = architecture._Layout([*toy[:-1], beside])
    (x0, y0), (x1, y1) = crowded.way(stages["encoder 2"], stages["decoder"])
    assert (x1, y1) == (crowded.horizontal[2][0], sum(crowded.vertical[2]) / 2)
