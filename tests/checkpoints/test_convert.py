import pytest
import torch

from common.checkpoints import convert_checkpoint
from common.errors import InputError
from common.networks import MambaClinix

from ..conftest import GoldenCase


@pytest.mark.parametrize(
    ("case", "network"),
    [
        ("lightm_unet_2d", "lightm_unet"),
        ("mambaclinix", "mambaclinix"),
        ("umamba_bot_2d", "umamba"),
        ("umamba_v1_enc_3d", "umamba"),
        ("segmamba", "segmamba"),
        ("swin_umamba_d", "swin_umamba"),
    ],
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
    ("network", "name"),
    [
        ("lightm_unet", "LightM-UNet"),
        ("mambaclinix", "MambaClinix"),
        ("segmamba", "SegMamba"),
        ("swin_umamba", "Swin-UMamba"),
        ("umamba", "U-Mamba"),
        ("vm_unet", "VM-UNet"),
    ],
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


def test_vm_unets_checkpoint_of_a_training_that_goes_on():
    """As its train.py writes latest.pth, after thop has counted what each module does."""
    head = torch.zeros(3, 24, 1, 1)
    counts = ("vmunet.total_ops", "vmunet.layers.0.total_params", "total_params")
    released = {"vmunet.final_conv.weight": head, **dict.fromkeys(counts, torch.zeros(1))}
    latest = {"epoch": 7, "model_state_dict": released, "optimizer_state_dict": {"state": {}}}
    converted = convert_checkpoint(latest, "vm_unet")
    assert list(converted) == ["head.weight"]
    assert converted["head.weight"] is head
