import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import InputError
from common.networks import LightMUNet
from common.workflows import load_for_export, load_trained

CONFIG: dict[str, Any] = {
    "patch_size": [16, 16],
    "filters": 8,
    "network": {
        "_target_": "common.networks.LightMUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "init_filters": "@filters",
    },
    "preprocessing": {"_target_": "Compose", "transforms": []},
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "inference.json").write_text(json.dumps(CONFIG))
    torch.save({"model": LightMUNet(2, 1, 2, init_filters=16).state_dict()}, tmp_path / "model.pt")
    return tmp_path / "inference.json", tmp_path / "model.pt"


def test_config_and_overrides_build_the_network(files: tuple[Path, Path]):
    network, preprocessing, patch_size = load_trained(*files, {"filters": 16})
    expected = torch.load(files[1])["model"]
    for name, x in network.state_dict().items():
        assert torch.equal(x, expected[name])
    assert preprocessing({"image": 1}) == {"image": 1}
    assert patch_size == [16, 16]


def test_unusable_configs_are_named(files: tuple[Path, Path], tmp_path: Path):
    config, checkpoint = files
    with pytest.raises(InputError, match="is not of this LightMUNet"):
        load_trained(config, checkpoint)
    with pytest.raises(InputError, match=r"has no filter; the nearest is filters"):
        load_trained(config, checkpoint, {"filter": 16})
    with pytest.raises(InputError, match=r"There is no config .*none\.json"):
        load_trained(tmp_path / "none.json", checkpoint)
    del (broken := dict(CONFIG))["preprocessing"]
    config.write_text(json.dumps(broken))
    with pytest.raises(InputError, match="has no preprocessing"):
        load_trained(config, checkpoint)
    for text, reason in (
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list; allowed is a JSON object"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"filters": 8, "filters": 16}', "has 'filters' twice"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=rf"inference\.json {reason}"):
            load_trained(config, checkpoint)
    config.write_text(json.dumps({**CONFIG, "network_def": CONFIG["network"], "filters": 16}))
    assert load_for_export(config, checkpoint).metadata is None
    (tmp_path / "metadata.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(InputError, match=r"metadata\.json has 'a' twice"):
        load_for_export(config, checkpoint)
