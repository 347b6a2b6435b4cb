"""Networks to compare with: those of MONAI and nnU-Net, but for what they give in training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from monai.networks import nets
from torch import Tensor

from common.errors import InputError
from common.networks import DynUNet, ResEncUNet, SegResNetVAE
from common.workflows.export import export_network

DYNUNET = {
    "kernel_size": [3, 3, 3, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [4, 6, 8, 8],
    "deep_supervision": True,
    "deep_supr_num": 2,
}
RESENC = {
    "features": [4, 6, 8],
    "strides": [1, 2, 2],
    "blocks_down": [1, 2, 1],
    "blocks_up": [1, 1],
}
VAE = {"input_image_size": [32, 32], "init_filters": 8, "vae_estimate_std": True, "vae_nz": 4}


@pytest.mark.parametrize("dims", [2, 3])
def test_dynunet(dims: int):
    torch.manual_seed(0)
    ours, theirs = DynUNet(dims, 1, 3, **DYNUNET), nets.DynUNet(dims, 1, 3, **DYNUNET)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 1, *[32] * dims)
    scales = ours(image)
    assert [scale.shape[2:] for scale in scales] == [(n,) * dims for n in (32, 16, 8)]
    assert torch.equal(scales[0], theirs(image)[:, 0])
    with torch.no_grad():
        assert torch.equal(ours(image), scales[0])
        assert torch.equal(ours.eval()(image), theirs.eval()(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_segresnet_vae(dims: int):
    torch.manual_seed(0)
    arguments = VAE | {"input_image_size": [32] * dims, "spatial_dims": dims}
    ours, theirs = SegResNetVAE(**arguments), nets.SegResNetVAE(**arguments)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 1, *[32] * dims)
    torch.manual_seed(1)
    logits, loss = ours(image)
    torch.manual_seed(1)
    expected, once = theirs(image)
    assert torch.equal(logits, expected)
    assert torch.equal(loss, once.expand(2))
    with torch.no_grad():
        assert torch.equal(ours(image), logits)
        assert torch.equal(ours.eval()(image), theirs.eval()(image)[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_resenc_is_nnunets(dims: int):
    """As nnU-Net builds it of a plan; and each has the other's outputs."""
    pytest.importorskip("nnunetv2")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    arguments = {
        "n_stages": 3,
        "features_per_stage": RESENC["features"],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * dims],
        "n_blocks_per_stage": RESENC["blocks_down"],
        "n_conv_per_stage_decoder": RESENC["blocks_up"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    torch.manual_seed(0)
    theirs = get_network_from_plans(name, arguments, imported, 1, 3, deep_supervision=True)
    torch.manual_seed(0)
    ours = ResEncUNet(dims, 1, 3, **RESENC)
    for name, x in theirs.state_dict().items():  # initial values, too
        assert torch.equal(ours.state_dict()[f"network.{name}"], x), name
    image = torch.rand(2, 1, *[16] * dims)
    scales = ours(image)
    for scale, expected in zip(scales, theirs(image), strict=True):
        assert torch.equal(scale, expected)
    with torch.no_grad():
        assert torch.equal(ours(image), scales[0])
        assert torch.equal(ours.eval()(image), scales[0])


def test_resenc_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(InputError) as refused:
        ResEncUNet(2, 1, 3, **RESENC)
    assert str(refused.value) == (
        "ResEncUNet needs dynamic-network-architectures, which is not installed: "
        'pip install ".[resenc]" in this project\'s folder.'
    )


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("features", [1, 2], 3),
        ("kernel_sizes", [3, 3], 3),
        ("blocks_down", [1], 3),
        ("blocks_up", [1, 1, 1], 2),
    ],
)
def test_resenc_of_unequal_stages(argument: str, value: list[int], wanted: int):
    message = f"{argument} has {len(value)} values; allowed for 3 strides are {wanted}"
    with pytest.raises(ValueError, match=message):
        ResEncUNet(2, 1, 3, **RESENC | {argument: value})


def test_resenc_without_deep_supervision():
    network = ResEncUNet(2, 1, 3, **RESENC, deep_supervision=False)
    assert isinstance(network(torch.rand(1, 1, 16, 16)), Tensor)


def test_no_torchscript_of_it(tmp_path: Path):
    network, file = ResEncUNet(2, 1, 3, **RESENC), tmp_path / "model.ts"
    with pytest.raises(InputError, match=r"ResEncUNet cannot .*allowed for it are torch_export"):
        export_network(network, [16, 16], "torchscript", file)
    assert not list(tmp_path.iterdir())


def test_torchscript():
    image = torch.rand(2, 1, 32, 32)
    network = SegResNetVAE(**VAE, spatial_dims=2).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image))
