"""nnU-Net's plans in MONAI's words; the slow tests run nnU-Net's own planner."""

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

from common.data.phantom import write_phantom
from common.errors import InputError
from common.workflows import plan, write_plan
from common.workflows.plan import nnunet_plans, plan_overrides

from ..conftest import REPOSITORY

# What nnU-Net plans for images with thick slices along x: it moves that axis, its last, to the
# front, and its plan is of the axes x, z, y.
PLANS = {
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 40.0, "std": 20.0, "percentile_00_5": -20.0, "percentile_99_5": 100.0}
    },
    "configurations": {
        "3d_fullres": {
            "batch_size": 3,
            "batch_dice": False,
            "spacing": [5.0, 1.5, 1.0],
            "patch_size": [16, 64, 96],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "architecture": {
                "arch_kwargs": {
                    "features_per_stage": [32, 64, 128],
                    "strides": [[1, 1, 1], [1, 2, 2], [1, 1, 2]],
                    "kernel_sizes": [[1, 3, 3], [1, 3, 5], [3, 3, 3]],
                }
            },
        }
    },
}


def description(channels: list[str]) -> dict[str, Any]:
    """nnU-Net's dataset.json for one case of three classes, whose files need not exist."""
    images = [f"/none/{name}.nii.gz" for name in channels]
    return {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 131,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "dataset": {"case": {"images": images, "label": "/none/label.nii.gz"}},
    }


def changed(**values: Any) -> dict[str, Any]:
    return PLANS | {
        "configurations": {"3d_fullres": PLANS["configurations"]["3d_fullres"] | values}
    }


def test_axes_are_monais():
    overrides = plan_overrides(PLANS, description(["CT"]))
    assert overrides["spacing"] == [5.0, 1.0, 1.5]  # x, y, z
    assert overrides["patch_size"] == [16, 96, 64]
    assert overrides["network_def#features"] == [32, 64, 128]
    assert overrides["network_def#strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 1]]
    assert overrides["network_def#kernel_sizes"] == [[1, 3, 3], [1, 5, 3], [3, 3, 3]]
    assert (overrides["batch_size"], overrides["batch_dice"]) == (3, False)
    assert (overrides["in_channels"], overrides["num_classes"]) == (1, 3)


def test_ct_is_clipped_and_normalised_by_the_foreground():
    from monai.bundle import ConfigParser

    intensity = plan_overrides(PLANS, description(["CT"]))["intensity"]
    transform = ConfigParser({"intensity": intensity}).get_parsed_content("intensity")
    image = np.array([[-500.0, -20, 40, 60, 100, 3000]], np.float32)
    expected = (image.clip(-20, 100) - 40) / 20
    np.testing.assert_allclose(transform({"image": image})["image"], expected, rtol=1e-6)


@pytest.mark.parametrize("nonzero", [False, True])
def test_others_are_normalised_image_by_image(nonzero: bool):
    schemes = ["ZScoreNormalization"] * 2
    plans = changed(normalization_schemes=schemes, use_mask_for_norm=[nonzero] * 2)
    overrides = plan_overrides(plans, description(["T1", "FLAIR"]))
    assert overrides["in_channels"] == 2
    intensity = overrides["intensity"]
    assert (intensity["_target_"], intensity["nonzero"]) == ("NormalizeIntensityd", nonzero)
    assert intensity["channel_wise"]


def test_plans_that_no_config_can_hold():
    mixed = changed(normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    with pytest.raises(InputError, match="CTNormalization, ZScoreNormalization; allowed are one"):
        plan_overrides(mixed, description(["CT", "PET"]))
    with pytest.raises(InputError, match="is 2D; allowed are volumes"):
        plan_overrides(PLANS | {"configurations": {"2d": {}}}, description(["CT"]))


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `write_plan` tells nnU-Net, which is not run."""
    seen: list[dict[str, Any]] = []

    def plans(description: dict[str, Any], gpu_memory: float, folder: Path) -> dict[str, Any]:
        shapes = [
            [nib.load(file).shape for file in case["images"]]
            for case in description["dataset"].values()
        ]
        seen.append(description | {"shapes": shapes, "gpu_memory": gpu_memory})
        names = list(description["channel_names"].values())
        schemes = ["CTNormalization" if n == "CT" else "ZScoreNormalization" for n in names]
        return changed(normalization_schemes=schemes, use_mask_for_norm=[True] * len(names))

    monkeypatch.setattr(plan, "nnunet_plans", plans)
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    return seen


def volumes(root: Path, channels: int = 1) -> Path:
    """Two volumes of 8 x 6 x 4 voxels, with labels 0 to 3, and no dataset.json."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        image = np.zeros((8, 6, 4, channels) if channels > 1 else (8, 6, 4), np.float32)
        label = np.arange(192, dtype=np.uint8).reshape(8, 6, 4) % 4
        nib.save(nib.Nifti1Image(image, np.eye(4)), root / f"imagesTr/{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / f"labelsTr/{name}.nii.gz")
    return root


def test_decathlon_data_set(tmp_path: Path, handed_over: list):
    data = write_phantom(tmp_path / "data", cases=2, seed=0, size=32)
    written = write_plan(data, tmp_path / "plan.json", gpu_memory=24)
    (told,) = handed_over
    assert told["channel_names"] == {"0": "CT"}
    assert list(told["labels"].values()) == [0, 1, 2]
    assert (told["numTraining"], told["gpu_memory"]) == (2, 24)
    assert json.loads((tmp_path / "plan.json").read_text()) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plan.json"]


def test_folders_without_a_list(tmp_path: Path, handed_over: list):
    """Classes are counted in the labels, channels taken from 4D files; a modality must be named."""
    data, output = volumes(tmp_path / "data", channels=2), tmp_path / "plan.json"
    with pytest.raises(InputError, match=r"names 0 channels of the images' 2; .* --modality MR"):
        write_plan(data, output)
    assert not output.exists()
    written = write_plan(data, output, modality="MR")
    (told,) = handed_over
    assert told["channel_names"] == {"0": "MR", "1": "MR"}
    assert told["shapes"] == [[(8, 6, 4), (8, 6, 4)]] * 2
    assert (written["in_channels"], written["num_classes"]) == (2, 4)


def test_nnunets_own_layout(tmp_path: Path, handed_over: list):
    data = volumes(tmp_path / "data")
    for file in sorted((data / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    labels = {"background": 0, "whole": [1, 2, 4], "core": 3}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(dataset))
    assert write_plan(data, tmp_path / "plan.json")["num_classes"] == 5
    assert handed_over[0]["channel_names"] == {"0": "CT"}


def test_what_the_user_can_mend(tmp_path: Path, handed_over: list, monkeypatch: pytest.MonkeyPatch):
    data, output = volumes(tmp_path / "data"), tmp_path / "plan.json"
    with pytest.raises(InputError, match="gpu_memory is 0; allowed are GB above 0"):
        write_plan(data, output, gpu_memory=0)
    (data / "imagesTr/b.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"imagesTr/b.nii.gz cannot be read"):
        write_plan(data, output, modality="CT")
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs nnU-Net, which is not installed: pip install"):
        write_plan(data, output)
    assert not output.exists()


def test_labels_that_are_not_trained_and_files_that_nnunet_cannot_turn(
    tmp_path: Path, handed_over: list
):
    data = volumes(tmp_path / "data")
    labels = {"background": 0, "organ": 1, "ignore": 2}
    stated = json.dumps({"channel_names": {"0": "CT"}, "labels": labels})
    (data / "dataset.json").write_text("\ufeff" + stated)
    assert write_plan(data, tmp_path / "plan.json")["num_classes"] == 2
    (data / "imagesTr/b.nii.gz").rename(data / "imagesTr/b.nrrd")
    with pytest.raises(InputError, match=r"b\.nrrd is not for nnU-Net to plan with; allowed are"):
        write_plan(data, tmp_path / "plan.json")


@pytest.mark.slow
def test_nnunet_plans_the_papers_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Table 2's LiverT: six stages, poolings (4, 5, 5), patch (64, 192, 192), batch 2.

    Of its volumes the paper gives the spacing alone; 22 cm of 512 x 512 voxels are a scan of the
    upper abdomen.
    """
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    intensities = {"mean": 99.4, "median": 101.0, "std": 39.36, "min": -900.0, "max": 1500.0}
    intensities |= {"percentile_00_5": -17.0, "percentile_99_5": 201.0}
    fingerprint = {
        "spacings": [[1.22, 0.76, 0.76]] * 3,
        "shapes_after_crop": [[170, 512, 512], [180, 512, 512], [190, 512, 512]],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    monkeypatch.setenv("nnUNet_raw", "/of/the/user")
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    plans = nnunet_plans(description(["CT"]), 8, tmp_path, fingerprint)
    theirs = {name: value for name, value in os.environ.items() if name.startswith("nnUNet")}
    assert theirs == {"nnUNet_raw": "/of/the/user"}
    planned = plan_overrides(plans, description(["CT"]))
    bundle = REPOSITORY / "bundles/liver_tumor_ct_mambaclinix_segmentation"
    ours = json.loads((bundle / "configs/train.json").read_text())
    for name, value in planned.items():
        part: Any = ours
        for key in name.split("#"):
            part = part[key]
        if name != "intensity":
            assert part == value, name
    strides = np.array(planned["network_def#strides"])
    assert np.log2(strides).sum(0)[::-1].tolist() == [4, 5, 5]  # z, y, x, as in the paper


@pytest.mark.slow
def test_nnunet_plans_for_any_orientation(tmp_path: Path):
    """Thick slices along x, of which one case is stored along another axis."""
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    label = np.zeros((20, 64, 80), np.uint8)
    label[5:12, 20:40, 20:50] = 1
    image = np.random.default_rng(0).normal(100 * label, 20).astype(np.float32)
    for i, axes in enumerate(("RAS", "IRP", "RAS")):
        for folder, values in (("imagesTr", image), ("labelsTr", label)):
            volume = nib.Nifti1Image(values, np.diag([6, 1.25, 1, 1]))
            stored = volume.as_reoriented(nib.orientations.axcodes2ornt(axes))
            nib.save(stored, tmp_path / folder / f"{i}.nii.gz")
    planned = write_plan(tmp_path, tmp_path / "plan.json", modality="MR")
    assert planned["spacing"] == [6, 1.25, 1]
    assert planned["patch_size"] == [20, 64, 80]
    assert planned["network_def#strides"][1] == [1, 2, 2]
    assert planned["network_def#kernel_sizes"][0] == [1, 3, 3]
    assert planned["num_classes"] == 2


@pytest.mark.slow
def test_plan_command(tmp_path: Path):
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    data = write_phantom(tmp_path / "data", cases=2, seed=0, size=40)
    arguments = ["--dataset_dir", data, "--output", tmp_path / "plan.json"]
    done = subprocess.run(
        [sys.executable, "-m", "common", "plan", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "Extracting dataset fingerprint" in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["plan"] == str(tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    zooms = [
        nib.as_closest_canonical(nib.load(file)).header.get_zooms()
        for file in (data / "imagesTr").iterdir()
    ]
    np.testing.assert_allclose(plan["spacing"], np.median(zooms, axis=0), rtol=1e-6)
