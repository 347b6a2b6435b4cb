"""The command that trains a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from common.workflows import prepare_training

from ..conftest import REPOSITORY

NAME = "lung_cxr_lightm_unet_segmentation"
OURS = REPOSITORY / "bundles" / NAME


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(*arguments: Any, **more: Any) -> dict[str, str]:
    python, *rest = prepare_training(*arguments, **more)
    assert [python, *rest[:3]] == [sys.executable, "-m", "monai.bundle", "run"]
    assert all(word.startswith("--") for word in rest[3::2])
    return dict(zip((word[2:] for word in rest[3::2]), rest[4::2], strict=True))


def test_of_a_name_it_is_in_a_copy(here: Path):
    assert words(NAME, "data") == {
        "config_file": f"{NAME}/configs/train.json",
        "bundle_root": NAME,
        "dataset_dir": "data",
    }
    config = (here / NAME / "configs/train.json").read_bytes()
    assert config == (OURS / "configs/train.json").read_bytes()


def test_of_a_folder_it_is_in_it(monkeypatch: pytest.MonkeyPatch):
    assert words(OURS, "data")["bundle_root"] == str(OURS)
    monkeypatch.chdir(OURS)
    found = words(".", "/data")
    assert (found["config_file"], found["bundle_root"]) == ("configs/train.json", ".")


def test_several_configs_are_of_the_bundle_or_the_users_own(here: Path):
    (here / "plan.json").write_text('{"batch_size": 3}')
    files = ["configs/train.json", "configs/networks/segresnet.json", "plan.json"]
    found = words(NAME, "data", output="out", config_file=files)
    assert found["config_file"] == str(
        ["out/configs/train.json", "out/configs/networks/segresnet.json", "plan.json"]
    )
    assert found["bundle_root"] == "out"


def test_what_is_given_is_given_on(here: Path):
    given = {
        "max_epochs": 3,
        "device": "cpu",
        "label_map": None,
        "network_def#init_filters": "8",
        "network_def::dropout": 0.1,  # MONAI's other way to write it, and not in the config
        "lr_scheduler": {"_target_": "ConstantLR"},
        "lr_scheduler#factor": 0.5,  # of what is given
        "tracking": "mlflow",
        "experiment_name": "lungs",
        "logging_file": "log.conf",
    }
    found = words(NAME, "data", overrides=given)
    for id_, word in (
        ("max_epochs", "3"),
        ("device", "cpu"),
        ("label_map", "$None"),
        ("network_def#init_filters", "8"),
        ("network_def::dropout", "0.1"),
        ("lr_scheduler", "{'_target_': 'ConstantLR'}"),
        ("experiment_name", "lungs"),
    ):
        assert found[id_] == word


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"overrides": {"max_epoch": 3}}, r"has no max_epoch; the nearest is max_epochs\."),
        ({"overrides": {"network_def#filters": 3}}, r"no filters of network_def; the nearest"),
        (
            {"overrides": {"experiment_name": "a"}},
            "sets experiment_name; .* has no experiment_name",
        ),
        ({"overrides": {"dataset_dir": "d"}}, "sets dataset_dir; allowed is --data"),
        ({"overrides": {"bundle_root": "d"}}, "sets bundle_root; allowed is --output"),
        ({"config_file": "configs/trian.json"}, r"trian\.json; the nearest is configs/train\.json"),
        ({"config_file": 5}, "has no config 5; allowed are configs/"),
        ({"config_file": "broken.json"}, r"broken\.json cannot be read as JSON"),
    ],
)
def test_what_the_configs_do_not_have(here: Path, more: dict[str, Any], reason: str):
    (here / "broken.json").write_text("{")
    with pytest.raises(InputError, match=reason):
        prepare_training(NAME, "data", **more)
    assert not (here / NAME).exists()
