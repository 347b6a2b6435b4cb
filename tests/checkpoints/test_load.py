import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from common.checkpoints import check_checkpoint, load_state_dict
from common.errors import InputError
from common.networks import LightMUNet

SMALL = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_filters": 8}


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
