import io
import pickle
import re
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.networks import LightMUNet
from common.zoo import check_checkpoint, convert_checkpoint, load_state_dict

from ..conftest import GoldenCase

SMALL = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_filters": 8}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"network_weights": sd, "current_epoch": 7},
        lambda sd: {"network_weights": {f"_orig_mod.{name}": x for name, x in sd.items()}},
        lambda sd: {f"module.{name}": x for name, x in sd.items()},
    ],
)
def test_wrapped_checkpoints_are_unwrapped(wrap):
    state_dict = GoldenCase("lightm_unet_2d").state_dict
    plain = convert_checkpoint(state_dict, "lightm_unet")
    unwrapped = convert_checkpoint(wrap(state_dict), "lightm_unet")
    assert plain.keys() == unwrapped.keys()
    assert all(torch.equal(plain[name], unwrapped[name]) for name in plain)


def test_foreign_parameters_are_refused():
    with pytest.raises(InputError, match=r"has a parameter 'encoder\.stages\.0\.weight'"):
        convert_checkpoint({"encoder.stages.0.weight": torch.zeros(1)}, "lightm_unet")
    with pytest.raises(InputError, match="network is 'unet'; allowed are lightm_unet"):
        convert_checkpoint({}, "unet")


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
