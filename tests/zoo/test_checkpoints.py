import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from common.errors import InputError
from common.networks import LightMUNet, MambaClinix, VMambaEncoder
from common.zoo import check_checkpoint, convert_checkpoint, load_encoder, load_state_dict

from ..conftest import GoldenCase

SMALL = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_filters": 8}


@pytest.mark.parametrize(
    ("case", "network"), [("lightm_unet_2d", "lightm_unet"), ("mambaclinix", "mambaclinix")]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"network_weights": sd, "current_epoch": 7},
        lambda sd: {"network_weights": {f"_orig_mod.{name}": x for name, x in sd.items()}},
        lambda sd: {f"module.{name}": x for name, x in sd.items()},
    ],
)
def test_wrapped_checkpoints_are_unwrapped(wrap, case: str, network: str):
    state_dict = GoldenCase(case).state_dict
    plain = convert_checkpoint(state_dict, network)
    unwrapped = convert_checkpoint(wrap(state_dict), network)
    assert plain.keys() == unwrapped.keys()
    assert all(torch.equal(plain[name], unwrapped[name]) for name in plain)


@pytest.mark.parametrize(
    ("network", "name"), [("lightm_unet", "LightM-UNet"), ("mambaclinix", "MambaClinix")]
)
def test_foreign_parameters_are_refused(network: str, name: str):
    message = rf"has a parameter 'encoder\.layers\.0\.weight', which {name}'s released code"
    with pytest.raises(InputError, match=message):
        convert_checkpoint({"encoder.layers.0.weight": torch.zeros(1)}, network)


def test_unknown_networks_are_refused():
    with pytest.raises(
        InputError, match="network is 'unet'; allowed are lightm_unet, mambaclinix, rma"
    ):
        convert_checkpoint({}, "unet")


def test_mambaclinix_at_other_depths():
    network = MambaClinix(
        1, 2, features=(8, 8), strides=((1,) * 3, (2,) * 3), kernel_sizes=((3,) * 3,) * 2
    )
    released = {
        "encoder.LayerNorm.gamma": network.encoder[0].norm.weight,
        "encoder.encoder_layers.0.gamma1": network.encoder[0].layer.scale,
        "encoder.encoder_layers.0.transconv.conv.bias": network.encoder[0].layer.reduce.bias,
        "encoder.encoder_layers.0.transconv.all_modules.0.bias": torch.zeros(4),
        "encoder.encoder_layers.1.mamba.D": network.encoder[1].layer.mamba.D,
        "decoder.encoder.encoder_layers.1.mamba.D": torch.zeros(16),
    }
    converted = convert_checkpoint(released, "mambaclinix")
    parameters = dict(network.named_parameters())
    assert len(converted) == 4
    assert all(x is parameters[name] for name, x in converted.items())


@pytest.mark.parametrize("wrap", [lambda sd: sd, lambda sd: {"model": sd, "epoch": 3}])
def test_checkpoint_that_fits(tmp_path: Path, wrap):
    network = LightMUNet(**SMALL)
    torch.save(wrap(network.state_dict()), tmp_path / "model.pt")
    check_checkpoint(tmp_path / "model.pt", network)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            {"out_channels": 3},
            "head.conv.pointwise.weight has shape (3, 8, 1, 1), not (2, 8, 1, 1)",
        ),
        ({"blocks_up": (2, 1, 1)}, "decoder.0.blocks.1.skip_scale is unknown"),
        ({"skip_scale": False}, "encoder.0.blocks.0.layer1.skip_scale is missing"),
    ],
)
def test_checkpoint_of_another_network(tmp_path: Path, other: dict, difference: str):
    torch.save(LightMUNet(**(SMALL | other)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=re.escape(difference)):
        check_checkpoint(tmp_path / "model.pt", LightMUNet(**SMALL))


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt cannot be read as a checkpoint"):
        load_state_dict("evil.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("version", ["2.4.1", "2.5.1+cu121"])
def test_torch_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with pytest.raises(InputError, match=re.escape(f"torch is {version}; allowed is one from 2.6")):
        load_state_dict(tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    assert load_state_dict(tmp_path / "model.pt").keys() == {"weight"}


def _truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(100)}, buffer)
    return buffer.getvalue()[:-100]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        (pickle.dumps({"a": 1}), "cannot be read as a checkpoint"),
        (_truncated(), "cannot be read as a checkpoint"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))} {message}"):
        load_state_dict(file)


def test_missing_file_and_missing_state_dict(tmp_path: Path):
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_state_dict(tmp_path / "model.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load_state_dict(tmp_path / "list.pt")


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
