"""Checkpoints of trainings inside nnU-Net become a bundle's; the slow test compares predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from common.checkpoints import load_checkpoint, load_settings, load_state_dict
from common.errors import InputError
from common.networks import LightMUNet
from common.nnunet import trainers_folder
from common.workflows import convert_nnunet

from .. import preloaded
from ..conftest import REPOSITORY
from ..running import command, succeed

NETWORK = {
    "_target_": "common.networks.LightMUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "init_filters": 8,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}
INTENSITIES = {"mean": 100.0, "std": 40.0, "percentile_00_5": -20.0, "percentile_99_5": 200.0}


def content(**init_args: Any) -> dict[str, Any]:
    """What nnU-Net's checkpoint_final.pth of a tiny LightM-UNet holds."""
    network = LightMUNet(**{k: v for k, v in NETWORK.items() if k != "_target_"})
    configuration = {
        "patch_size": [16, 24, 32],
        "spacing": [5.0, 1.5, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
    }
    plans = {
        "dataset_name": "Dataset004_Liver",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "configurations": {
            "3d_fullres": configuration,
            "3d_large": {"inherits_from": "3d_fullres", "patch_size": [32, 48, 64]},
        },
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tumour": 2, "liver": 1, "ignore": 3},
    }
    given = {
        "plans": plans,
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": dataset,
        "device": torch.device("cpu"),
        "network_def": NETWORK,
    }
    return {
        "network_weights": network.state_dict(),
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.25)], "dice_per_class": [[np.float32(0.5)]]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 1,
        "init_args": given | init_args,
        "trainer_name": "LightMUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def saved(folder: Path, held: Any) -> Path:
    torch.save(held, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def test_numbers_of_numpy_are_read_and_nothing_else_of_it(tmp_path: Path):
    numbers = [np.float64(0.75), np.float32(0.5), np.int64(-3), np.bool_(True)]
    found = load_checkpoint(saved(tmp_path, {"numbers": numbers}))["numbers"]
    assert found == [0.75, 0.5, -3, True]
    assert [type(x) for x in found] == [float, float, int, bool]
    for other in (np.zeros(3), np.str_("text"), np.dtype("O"), np.datetime64("2026-11-26")):
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            load_checkpoint(saved(tmp_path, {"other": other}))


def test_numbers_of_numpy_1_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whose scalars are of numpy.core, as those of released checkpoints."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"a": np.float64(0.75)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(old)
    assert b"numpy.core.multiarray" in old
    assert load_checkpoint(path) == {"a": 0.75}


def test_a_checkpoint_of_nnunet_is_a_state_dict(tmp_path: Path):
    held = content()
    found = load_state_dict(saved(tmp_path, held))
    assert all(torch.equal(x, held["network_weights"][name]) for name, x in found.items())


def test_the_plans_settings_travel(tmp_path: Path):
    held = content()
    converted = convert_nnunet(saved(tmp_path, held))
    assert converted.keys() == held["network_weights"].keys()
    assert converted.settings == {
        "modality": "CT",
        "axcodes": "SAR",
        "in_channels": 1,
        "num_classes": 3,
        "label_map": None,
        "ignore_label": 3,
        "spacing": [5.0, 1.5, 1.0],
        "patch_size": [16, 24, 32],
        "intensity": {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": -20.0,
            "a_max": 200.0,
            "b_min": -3.0,
            "b_max": 2.5,
            "clip": True,
        },
        "network_def": NETWORK,
        "label_names": ["background", "liver", "tumour"],
    }


def test_a_configuration_has_what_it_inherits(tmp_path: Path):
    converted = convert_nnunet(saved(tmp_path, content(configuration="3d_large")))
    assert converted.settings["patch_size"] == [32, 48, 64]
    assert converted.settings["spacing"] == [5.0, 1.5, 1.0]


def changed(**plans: Any) -> dict[str, Any]:
    return content(plans=content()["init_args"]["plans"] | plans)


def test_axes_that_the_plan_moves(tmp_path: Path):
    moved = changed(transpose_forward=[2, 0, 1])
    assert convert_nnunet(saved(tmp_path, moved)).settings["axcodes"] == "RSA"


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_axes_of_readers_that_turn_what_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
):
    """Where files are stored otherwise, and there to tell."""
    imageio = pytest.importorskip("nnunetv2.imageio.reader_writer_registry")
    raw_data(tmp_path / "raw", "LPS")
    file = tmp_path / "raw/Dataset004_Liver/imagesTr/case_0_0000.nii.gz"
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    volume = nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]))
    nib.save(volume, file)
    seen, _ = imageio.recursive_find_reader_writer_by_name(reader)().read_images([str(file)])

    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    path = saved(tmp_path, changed(image_reader_writer=reader))
    axcodes = convert_nnunet(path).settings["axcodes"]
    turned = volume.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axcodes)
        )
    )
    np.testing.assert_array_equal(turned.get_fdata(), seen[0])


def raw_data(folder: Path, *orientations: str) -> None:
    """nnU-Net's raw data set of one case for each orientation."""
    root = folder / "Dataset004_Liver"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}
    about |= {"file_ending": ".nii.gz", "numTraining": len(orientations)}
    (root / "dataset.json").write_text(json.dumps(about))
    for i, codes in enumerate(orientations):
        volume = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
        volume = volume.as_reoriented(nib.orientations.axcodes2ornt(codes))
        nib.save(volume, root / f"imagesTr/case_{i}_0000.nii.gz")
        nib.save(volume, root / f"labelsTr/case_{i}.nii.gz")


def test_axes_are_those_that_the_training_images_are_stored_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = saved(tmp_path, changed(image_reader_writer="SimpleITKIO"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    message = "Dataset004_Liver are not there .*nnUNet_raw is not set.*give --axcodes SPL where"
    with pytest.raises(InputError, match=message):
        convert_nnunet(path)
    moved = changed(image_reader_writer="SimpleITKIO", transpose_forward=[2, 0, 1])
    with pytest.raises(InputError, match=r"give --axcodes LSP where .* --axcodes RSA where they"):
        convert_nnunet(saved(tmp_path, moved))
    path = saved(tmp_path, changed(image_reader_writer="SimpleITKIO"))
    assert convert_nnunet(path, "SPL").settings["axcodes"] == "SPL"
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "alike"))
    with pytest.raises(InputError, match="are not there to tell"):
        convert_nnunet(path)
    raw_data(tmp_path / "alike", "LPS", "LPS")
    assert convert_nnunet(path).settings["axcodes"] == "SPL"
    raw_data(tmp_path / "mixed", "LPS", "RAS")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "mixed"))
    with pytest.raises(InputError, match=r"along several axes: LPS in .*; RAS in .*; allowed,"):
        convert_nnunet(path)


def without_network() -> dict[str, Any]:
    held = content()
    del held["init_args"]["network_def"]
    return held | {"trainer_name": "nnUNetTrainer"}


def planned(**values: Any) -> dict[str, Any]:
    configuration = content()["init_args"]["plans"]["configurations"]["3d_fullres"]
    return changed(configurations={"3d_fullres": configuration | values})


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"network_weights": {"a": torch.zeros(1)}}, "is no checkpoint of a training by nnU-Net 2"),
        (content(configuration="3d_lowres"), r"is no checkpoint .*KeyError\('3d_lowres'\)"),
        (without_network(), "is of nnUNetTrainer, which does not say what its network is; allowed"),
        (planned(patch_size=[64, 64]), "configuration 3d_fullres, which no bundle has a counter"),
        (planned(previous_stage="3d_lowres"), "which no bundle has a counterpart"),
        (
            content(
                dataset_json={
                    "channel_names": {"0": "CT"},
                    "labels": {"background": 0, "whole": [1, 2], "tumour": [2]},
                }
            ),
            "is of regions, .*allowed is one number for each label",
        ),
        (
            content(network_def={"_target_": "os.system", "command": "true"}),
            "might run any code",
        ),
    ],
)
def test_what_bundles_cannot_have_is_refused(tmp_path: Path, held: Any, message: str):
    with pytest.raises(InputError, match=message):
        convert_nnunet(saved(tmp_path, held))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        convert_nnunet(saved(tmp_path, {**content(), "logging": Attack()}))
    assert not (tmp_path / "ran").exists()


def test_convert_command(tmp_path: Path):
    path = saved(tmp_path, content())
    output = tmp_path / "model.pt"
    words = ["convert", "--checkpoint", path, "--network", "nnunet", "--output", output]
    done = preloaded.run("common", *words)
    assert done.returncode == 0, done.stderr
    assert load_settings(output)["axcodes"] == "SAR"
    done = preloaded.run("common", *words, "--axcodes", "SPL")
    assert load_settings(output)["axcodes"] == "SPL"
    done = preloaded.run("common", *words, "--spacing", "[1,1,1]")
    assert done.returncode == 1
    assert "spacing is [1, 1, 1]; a checkpoint of nnunet has that of its own plan" in done.stderr


# Seeded, as what it has learned decides how many voxels are nearly tied.
SHORT = """
import random

import numpy as np
import torch
from common.nnunet.trainers import LightMUNetTrainer


class ShortTrainer(LightMUNetTrainer):
    epochs = 1

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        self.num_iterations_per_epoch = 4
        self.num_val_iterations_per_epoch = 1
        self.initial_lr = 3e-3

    @staticmethod
    def network_def(configuration, in_channels, out_channels):
        described = LightMUNetTrainer.network_def(configuration, in_channels, out_channels)
        return {**described, "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
"""


def volumes(folder: Path, size: tuple[int, int, int], codes: str, *, test: int) -> None:
    """A data set of balls in noise, at 2 mm, x fastest: 5 cases to train on, and others to test."""
    root = folder / "Dataset004_Balls"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(parents=True)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1, "core": 2}}
    about |= {"file_ending": ".nii.gz", "numTraining": 5}
    (root / "dataset.json").write_text(json.dumps(about))
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    for i in range(5 + test):
        draw = np.random.default_rng(i)
        distance = np.linalg.norm(grid - draw.uniform(10, np.array(size) - 10), axis=-1)
        label = (distance < 9).astype(np.uint8) + (distance < 4)
        image = (draw.normal(0, 20, size) + 60 * label - 30).astype(np.float32)
        part = "Tr" if i < 5 else "Ts"
        name = f"ball_{i}"
        for kind, values, suffix in (("images", image, "_0000"), ("labels", label, "")):
            if kind == "images" or part == "Tr":
                volume = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
                volume = volume.as_reoriented(nib.orientations.axcodes2ornt(codes))
                nib.save(volume, root / f"{kind}{part}/{name}{suffix}.nii.gz")


@pytest.mark.slow
def test_the_bundle_predicts_what_nnunet_predicts(tmp_path: Path):
    """By the command lines of both; along the axes of DICOM, several windows along one of them.

    At the plan's spacing, since the two resample differently. nnU-Net adds up windows in float16,
    in which their weights near corners are coarse: there probabilities differ, and masks where
    two classes are about as likely.
    """
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    volumes(tmp_path / "raw", (40, 32, 24), "LPS", test=2)
    (tmp_path / "short").mkdir()
    (tmp_path / "short/short_trainers.py").write_text(SHORT)
    environment = os.environ | {
        "nnUNet_raw": str(tmp_path / "raw"),
        "nnUNet_preprocessed": str(tmp_path / "preprocessed"),
        "nnUNet_results": str(tmp_path / "results"),
        "nnUNet_extTrainer": f"{tmp_path / 'short'}{os.pathsep}{trainers_folder()}",
        "nnUNet_compile": "f",
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests/cpu_torchvision'}",
        "OMP_NUM_THREADS": "2",
    }

    def nnunet(verb: str, *words: object) -> None:
        script = Path(sys.executable).with_name(f"nnUNetv2_{verb}")
        done = subprocess.run(
            [str(script), *map(str, words)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    nnunet("plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-npfp", "1", "-np", "1")
    path = tmp_path / "preprocessed/Dataset004_Balls/nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 32, 32]  # of 24 x 32 x 40 voxels
    path.write_text(json.dumps(plans))
    environment["nnUNet_n_proc_DA"] = "0"  # in the training's own process, whose seed it is
    nnunet("train", "4", "3d_fullres", "0", "-tr", "ShortTrainer", "-device", "cpu")
    images, masks = tmp_path / "raw/Dataset004_Balls/imagesTs", tmp_path / "masks"
    which = ["-d", "4", "-c", "3d_fullres", "-tr", "ShortTrainer", "-f", "0", "-device", "cpu"]
    more = ["--save_probabilities", "-npp", "1", "-nps", "1"]
    nnunet("predict", "-i", images, "-o", masks, *which, *more)

    trained = tmp_path / "results/Dataset004_Balls/ShortTrainer__nnUNetPlans__3d_fullres"
    words = ["--checkpoint", trained / "fold_0/checkpoint_final.pth", "--network", "nnunet"]
    words += ["--output", tmp_path / "models/model.pt"]
    (tmp_path / "models").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "common", "convert", *map(str, words)],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    settings = load_settings(tmp_path / "models/model.pt")
    assert (settings["axcodes"], settings["patch_size"]) == ("SPL", [24, 32, 32])
    bundle = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
    options = {"bundle_root": tmp_path, "dataset_dir": images, "output_dir": tmp_path / "eval"}
    options |= {"test_time_flips": True, "save_probabilities": True}
    succeed(command(bundle, "inference", **options))

    for name in ("ball_5", "ball_6"):
        theirs = nib.load(masks / f"{name}.nii.gz")
        ours = nib.load(tmp_path / f"eval/{name}_seg.nii.gz")
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
        equal = ours.get_fdata() == theirs.get_fdata()
        probabilities = np.load(masks / f"{name}.npz")["probabilities"].transpose(0, 3, 2, 1)
        second, first = np.sort(probabilities, 0)[-2:]
        inside = np.zeros(equal.shape, bool)
        inside[8:-8, 8:-8, 6:-6] = True
        sure = first - second > np.where(inside, 0.05, 0.1)
        assert sure[inside].any()
        assert equal[sure].all()
        assert equal[inside].mean() > 0.95
        maps = nib.load(tmp_path / f"eval/{name}_probabilities.nii.gz").get_fdata()
        difference = np.moveaxis(maps, -1, 0) - probabilities
        assert abs(difference)[:, inside].mean() < 5e-3
