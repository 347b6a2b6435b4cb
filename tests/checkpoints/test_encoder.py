from pathlib import Path

import pytest
import torch

from common.checkpoints import load_encoder
from common.errors import InputError
from common.networks import VMambaEncoder


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
