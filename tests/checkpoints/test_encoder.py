import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.blocks import VSSEncoder
from common.checkpoints import load_encoder
from common.errors import InputError
from common.networks import SwinUMamba, VMambaEncoder, VMUNet


def around(encoder: VMambaEncoder) -> torch.nn.Module:
    network = torch.nn.Module()
    network.encoder = encoder
    return network


def vmamba_classifier(in_channels: int = 3) -> tuple[dict, VMambaEncoder]:
    """A small checkpoint with the names of VMamba's release, and the encoder that it fills."""
    encoder = VMambaEncoder(in_channels, channels=16, depths=(1, 2))
    back = [
        ("patch_embedding.conv1", "patch_embed.0"),
        ("patch_embedding.norm1", "patch_embed.2"),
        ("patch_embedding.conv2", "patch_embed.5"),
        ("patch_embedding.norm2", "patch_embed.7"),
        ("stages.1.down.0", "layers.0.downsample.1"),
        ("stages.1.down.1", "layers.0.downsample.3"),
        ("stages.", "layers."),
        (".norm1.", ".norm."),
        (".mixer.", ".op."),
        (".mlp.0.", ".mlp.fc1."),
        (".mlp.2.", ".mlp.fc2."),
    ]
    released = {"classifier.head.weight": torch.zeros(10, 32)}
    for name, x in encoder.state_dict().items():
        if name.startswith("norms."):
            continue
        for ours, theirs in back:
            if "patch" in ours or "patch" not in name:
                name = name.replace(ours, theirs)
        released[name] = x.clone()
    return {"model": released, "epoch": 292}, encoder


def test_imagenet_classifier_fills_the_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoint, source = vmamba_classifier()
    torch.save(checkpoint, tmp_path / "vssm.pth")
    encoder = VMambaEncoder(3, channels=16, depths=(1, 2))
    with caplog.at_level("INFO"):
        load_encoder(around(encoder), tmp_path / "vssm.pth")
    for name, x in source.state_dict().items():
        assert torch.equal(x, encoder.state_dict()[name]), name
    assert "Left out: classifier.head.weight." in caplog.text
    assert "Missing, so as initialised: norms.0.weight, norms.0.bias, norms.1" in caplog.text


@pytest.mark.parametrize("channels", [1, 5])
def test_first_convolution_takes_other_channels(tmp_path: Path, channels: int):
    checkpoint, source = vmamba_classifier()
    torch.save(checkpoint, tmp_path / "vssm.pth")
    encoder = VMambaEncoder(channels, channels=16, depths=(1, 2)).eval()
    load_encoder(around(encoder), tmp_path / "vssm.pth")
    grey = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        encoder.double()
        expected = source.eval().double()(grey.expand(-1, 3, -1, -1))
        for got, wanted in zip(encoder(grey.expand(-1, channels, -1, -1)), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_no_encoder_is_said_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        load_encoder(torch.nn.Identity(), None)
    assert [r.getMessage() for r in caplog.records] == [
        "No pretrained encoder is given: training starts from scratch."
    ]


def test_encoder_of_another_size_is_refused(tmp_path: Path):
    torch.save(vmamba_classifier()[0], tmp_path / "vssm.pth")
    with pytest.raises(
        InputError, match=r"does not fit this Module's encoder: patch_embedding\.conv1\.weight"
    ):
        load_encoder(around(VMambaEncoder(3, 32, depths=(1, 2))), tmp_path / "vssm.pth")
    with pytest.raises(InputError, match=r"has shape .* allowed is no such parameter"):
        load_encoder(around(VMambaEncoder(3, 16, depths=(1, 1))), tmp_path / "vssm.pth")
    with pytest.raises(InputError, match="does not fit this Identity's encoder"):
        load_encoder(torch.nn.Identity(), tmp_path / "vssm.pth")


def of_first_version(encoder: VSSEncoder) -> dict[str, dict[str, Tensor]]:
    """A classifier with that encoder and the names of VMamba's first version."""
    released = {"norm.weight": torch.zeros(8), "head.weight": torch.zeros(10, 8)}
    for name, x in encoder.state_dict().items():
        name = re.sub(r"^downs\.0\.conv\.", "patch_embed.proj.", name)
        name = re.sub(r"^downs\.0\.norm\.", "patch_embed.norm.", name)
        name = re.sub(
            r"^downs\.(\d)\.(norm|reduce)\.",
            lambda m: f"layers.{int(m[1]) - 1}.downsample.{m[2]}.".replace("reduce", "reduction"),
            name,
        )
        name = re.sub(r"^stages\.(\d)\.(\d)\.norm\.", r"layers.\1.blocks.\2.ln_1.", name)
        name = re.sub(r"^stages\.(\d)\.(\d)\.mixer\.", r"layers.\1.blocks.\2.self_attention.", name)
        released[name] = x.clone()
    assert not any(name.startswith(("downs", "stages")) for name in released)
    return {"model": released}


def classifier(depths: tuple[int, ...]) -> VSSEncoder:
    torch.manual_seed(1)
    return VSSEncoder(3, (8, 16), depths, 4, 0.0, "auto")


def taken(network: torch.nn.Module, source: VSSEncoder, places: dict[str, str]) -> None:
    """Assert that parts of a network are a classifier's."""
    own, given = network.state_dict(), source.state_dict()
    for place, of in places.items():
        names = [name for name in own if name.startswith(place)]
        assert names, place
        for name in names:
            assert torch.equal(own[name], given[of + name.removeprefix(place)]), name


def test_vm_unets_encoder_and_its_decoder_in_reverse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """As its released code takes VMamba-S, whose third stage is deeper."""
    source = classifier((1, 3))
    torch.save(of_first_version(source), tmp_path / "vmamba.pth")
    network = VMUNet(3, 1, (1, 2), (2, 1), (8, 16))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with caplog.at_level("INFO"):
        load_encoder(network, tmp_path / "vmamba.pth")
    places = {"encoder.downs.": "downs.", "encoder.stages.": "stages."}
    places |= {"decoder.0.blocks.": "stages.1.", "decoder.1.blocks.": "stages.0."}
    taken(network, source, places)
    for name, x in network.state_dict().items():
        if not name.startswith(tuple(places)):
            assert torch.equal(x, before[name]), name
    assert "Left out: stages.1.2." in caplog.text
    assert "Missing, so as initialised: none." in caplog.text


@pytest.mark.parametrize(
    ("decoder", "channels", "patches"),
    [("convolution", 1, False), ("convolution", 3, False), ("mamba", 1, False), ("mamba", 3, True)],
)
def test_swin_umambas_encoder(tmp_path: Path, decoder: str, channels: int, patches: bool):
    """Its patches are others, unless they are a photograph's in the decoder of Mamba."""
    source = classifier((1, 2))
    torch.save(of_first_version(source), tmp_path / "vmamba.pth")
    network = SwinUMamba(channels, 3, decoder, (1, 2), (8, 16))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    load_encoder(network, tmp_path / "vmamba.pth")
    places = {"encoder.downs.1.": "downs.1.", "encoder.stages.": "stages."}
    places |= {"encoder.downs.0.": "downs.0."} if patches else {}
    taken(network, source, places)
    for name, x in network.state_dict().items():
        if not name.startswith(tuple(places)):
            assert torch.equal(x, before[name]), name


def test_encoders_that_the_first_version_does_not_fit(tmp_path: Path):
    torch.save(of_first_version(classifier((1, 1))), tmp_path / "vmamba.pth")
    with pytest.raises(
        InputError,
        match=r"does not fit this SwinUMamba: encoder\.downs\.1\.\S+ has shape .*vmamba_tiny_e292",
    ):
        load_encoder(SwinUMamba(1, 2, depths=(1, 1), features=(16, 32)), tmp_path / "vmamba.pth")
    for network in (around(VMambaEncoder(3, 16, depths=(1, 2))), torch.nn.Identity()):
        with pytest.raises(InputError, match="is none of VMamba's first version; allowed are Swin"):
            load_encoder(network, tmp_path / "vmamba.pth")
