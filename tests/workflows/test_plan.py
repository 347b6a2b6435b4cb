"""nnU-Net's plans in MONAI's words, for every bundle; the slow tests run it as users do."""

from __future__ import annotations

import json
import math
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from common.data import split_cases
from common.data.phantom import write_phantom
from common.errors import InputError
from common.workflows import plan, write_plan
from common.workflows.plan import Training, nnunet_plans, plan_overrides

from .. import preloaded
from ..conftest import REPOSITORY

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
LIGHTM, CODEBOOK, ELANRES, LCMAMBA, CLINIX, LUNGS, UMAMBA, SEGMAMBA, SWIN, SKIN, HIPPOCAMPUS = (
    REPOSITORY / f"bundles/{name}_segmentation"
    for name in (
        "liver_ct_lightm_unet",
        "liver_tumor_ct_codebook_mamba",
        "liver_tumor_ct_elanres_msca",
        "liver_tumor_ct_lcmambanet",
        "liver_tumor_ct_mambaclinix",
        "lung_cxr_lightm_unet",
        "abdomen_ct_umamba",
        "brain_tumor_mr_segmamba",
        "abdomen_mr_swin_umamba",
        "skin_lesion_rgb_vm_unet",
        "hippocampus_mr_lightm_unet",
    )
)
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


def training(bundle: Path, **given: Any) -> ConfigParser:
    config = ConfigParser(json.loads((bundle / "configs/train.json").read_text()))
    config.update(given)
    return config


def overrides(plans: dict[str, Any], bundle: Path = CLINIX, **given: Any) -> dict[str, Any]:
    config = training(bundle, **given)
    return plan_overrides(plans, config, given, plan._multiples(bundle))


def changed(**values: Any) -> dict[str, Any]:
    return PLANS | {
        "configurations": {"3d_fullres": PLANS["configurations"]["3d_fullres"] | values}
    }


def test_axes_are_monais():
    planned = overrides(PLANS)
    assert planned["spacing"] == [5.0, 1.0, 1.5]  # x, y, z
    assert planned["patch_size"] == [16, 96, 64]
    assert planned["network_def#features"] == [32, 64, 128]
    assert planned["network_def#strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 1]]
    assert planned["network_def#kernel_sizes"] == [[1, 3, 3], [1, 5, 3], [3, 3, 3]]
    assert (planned["batch_size"], planned["batch_dice"]) == (3, False)
    assert (planned["in_channels"], planned["num_classes"]) == (1, 3)


def test_patches_are_what_the_network_divides_by():
    """By the bundle's metadata; MambaClinix' network has nnU-Net's stages, and so its patch."""
    uneven = changed(patch_size=[12, 56, 40])
    assert overrides(uneven)["patch_size"] == [12, 40, 56]
    assert overrides(uneven, LIGHTM)["patch_size"] == [16, 40, 56]
    assert overrides(uneven, CODEBOOK)["patch_size"] == [16, 48, 64]


def test_slices_by_their_own_spacing_where_the_plane_is_relative():
    assert "spacing" not in overrides(PLANS, CODEBOOK)
    assert overrides(PLANS, CODEBOOK)["slice_spacing"] == 1.5
    assert overrides(PLANS, CODEBOOK, slice_spacing=2)["slice_spacing"] == 2
    assert overrides(PLANS, ELANRES)["slice_spacing"] is None  # as they are


def test_slices_that_have_a_spacing():
    """nnU-Net's 2D configuration; of what is given, two numbers within the slices."""
    flat = PLANS["configurations"]["3d_fullres"] | {"spacing": [1.5, 1.2], "patch_size": [250, 300]}
    schemes = {"normalization_schemes": ["ZScoreNormalization"], "batch_size": 30}
    planned = overrides(PLANS | {"configurations": {"2d": flat | schemes}}, SWIN)
    assert planned["spacing"] == [1.2, 1.5]
    assert planned["patch_size"] == [320, 256]
    assert planned["batch_size"] == 5  # cases of six slices each
    assert not any(id_.startswith("network_def") for id_ in planned)
    spacing = plan._working_spacing(training(SWIN), {"spacing": [1.25, 1.5]}, [6.0, 1.0, 1.0])
    assert spacing == [6.0, 1.5, 1.25]


def test_ct_is_clipped_and_normalised_by_the_foreground():
    intensity = overrides(PLANS)["intensity"]
    transform = ConfigParser({"intensity": intensity}).get_parsed_content("intensity")
    image = np.array([[-500.0, -20, 40, 60, 100, 3000]], np.float32)
    expected = (image.clip(-20, 100) - 40) / 20
    np.testing.assert_allclose(transform({"image": image})["image"], expected, rtol=1e-6)


@pytest.mark.parametrize("nonzero", [False, True])
def test_others_are_normalised_image_by_image(nonzero: bool):
    schemes = ["ZScoreNormalization"] * 2
    plans = changed(normalization_schemes=schemes, use_mask_for_norm=[nonzero] * 2)
    planned = overrides(plans, in_channels=2)
    assert planned["in_channels"] == 2
    intensity = planned["intensity"]
    assert (intensity["_target_"], intensity["nonzero"]) == ("NormalizeIntensityd", nonzero)
    assert intensity["channel_wise"]


def test_plans_that_no_config_can_hold():
    mixed = changed(normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    with pytest.raises(InputError, match="CTNormalization, ZScoreNormalization; allowed are one"):
        overrides(mixed)
    with pytest.raises(InputError, match="is 2D; allowed are volumes"):
        overrides(PLANS | {"configurations": {"2d": {}}})
    scores = changed(normalization_schemes=["ZScoreNormalization"])
    with pytest.raises(
        InputError, match=r"NormalizeIntensityd, which has no b_min for .*; allowed"
    ):
        overrides(scores, ELANRES)
    same = {"mean": 7.0, "std": 0.0, "percentile_00_5": 7.0, "percentile_99_5": 7.0}
    flat = PLANS | {"foreground_intensity_properties_per_channel": {"0": same}}
    with pytest.raises(InputError, match="The foreground has the value 7 nearly everywhere; allow"):
        overrides(flat)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `write_plan` tells nnU-Net, which is not run."""
    seen: list[dict[str, Any]] = []

    def plans(for_: Training, names: dict, gpu_memory: float, folder: Path) -> dict[str, Any]:
        files = [str(case["image"]) for case in for_.cases]
        channels, classes = (for_.config[id_] for id_ in ("in_channels", "num_classes"))
        assert channels == len(names)
        seen.append({"names": names, "classes": classes, "gpu": gpu_memory, "files": files})
        schemes = [
            "CTNormalization" if n == "CT" else "ZScoreNormalization" for n in names.values()
        ]
        return changed(normalization_schemes=schemes, use_mask_for_norm=[True] * len(names))

    monkeypatch.setattr(plan, "nnunet_plans", plans)
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    return seen


def volumes(root: Path, channels: int = 1) -> Path:
    """Three volumes of 8 x 6 x 4 voxels, with labels 0 to 3, and no dataset.json."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b", "c"):
        image = np.zeros((8, 6, 4, channels) if channels > 1 else (8, 6, 4), np.float32)
        label = np.arange(192, dtype=np.uint8).reshape(8, 6, 4) % 4
        nib.save(nib.Nifti1Image(image, np.eye(4)), root / f"imagesTr/{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / f"labelsTr/{name}.nii.gz")
    return root


def test_decathlon_data_set(tmp_path: Path, handed_over: list):
    data = write_phantom(tmp_path / "data", cases=3, seed=0, size=32)
    done = write_plan(CLINIX, data, tmp_path / "plan.json", gpu_memory=24)
    (told,) = handed_over
    assert told["names"] == {"0": "CT"}
    assert (told["classes"], told["gpu"]) == (3, 24)
    assert json.loads((tmp_path / "plan.json").read_text()) == done.overrides
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plan.json"]


def test_folders_without_a_list(tmp_path: Path, handed_over: list):
    """Classes are counted in the labels, channels taken from 4D files; a modality must be named."""
    data, output = volumes(tmp_path / "data", channels=2), tmp_path / "plan.json"
    with pytest.raises(InputError, match=r"names 0 channels of the images' 2; .* --modality MR"):
        write_plan(LIGHTM, data, output)
    assert not output.exists()
    written = write_plan(LIGHTM, data, output, modality="MR").overrides
    (told,) = handed_over
    assert told["names"] == {"0": "MR", "1": "MR"}
    assert (written["in_channels"], written["num_classes"]) == (2, 4)
    assert written["modality"] == "MR"  # which training needs as well


def test_nnunets_own_layout(tmp_path: Path, handed_over: list):
    data = volumes(tmp_path / "data")
    for file in sorted((data / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    labels = {"background": 0, "whole": [1, 2, 4], "core": 3}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(dataset))
    assert write_plan(CLINIX, data, tmp_path / "plan.json").overrides["num_classes"] == 5
    assert handed_over[0]["names"] == {"0": "CT"}


def test_what_labels_are_is_training_s(tmp_path: Path, handed_over: list):
    data, output = volumes(tmp_path / "data"), tmp_path / "plan.json"
    labels = {"background": 0, "organ": 1, "vessel": 2, "ignore": 3}
    stated = json.dumps({"channel_names": {"0": "CT"}, "labels": labels})
    (data / "dataset.json").write_text("\ufeff" + stated)
    written = write_plan(LIGHTM, data, output).overrides
    assert (written["num_classes"], written["ignore_label"]) == (3, 3)
    assert "label_map" not in written
    label_map = {0: 0, 1: 1, 2: 1}
    written = write_plan(LIGHTM, data, output, label_map=label_map).overrides
    assert (written["num_classes"], written["label_map"]) == (2, label_map)
    (data / "dataset.json").unlink()
    given = {"modality": "CT", "ignore_label": 3}
    written = write_plan(LIGHTM, data, output, **given).overrides
    assert (written["num_classes"], written["ignore_label"]) == (3, 3)


def test_the_cases_are_those_of_training(tmp_path: Path, handed_over: list):
    data, output = volumes(tmp_path / "data"), tmp_path / "plan.json"
    parts = {"training": ["c"], "validation": ["a"], "test": ["b"]}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    given = {"modality": "CT", "split_file": str(tmp_path / "parts.json")}
    done = write_plan(LIGHTM, data, output, **given)
    assert (done.cases, done.of) == (1, 3)
    (file,) = handed_over[0]["files"]
    assert file.endswith("c.nii.gz")
    assert not {"split_file", "dataset_dir"} & done.overrides.keys()  # training is told them anyway
    done = write_plan(LIGHTM, data, output, modality="CT", split_seed=3)
    expected = split_cases(data, "training", seed=3)
    assert handed_over[1]["files"] == [case["image"] for case in expected]
    assert done.cases == len(expected)


def test_what_the_user_can_mend(tmp_path: Path, handed_over: list, monkeypatch: pytest.MonkeyPatch):
    data, output = volumes(tmp_path / "data"), tmp_path / "plan.json"
    with pytest.raises(InputError, match="gpu_memory is 0; allowed are GB above 0"):
        write_plan(CLINIX, data, output, gpu_memory=0)
    with pytest.raises(InputError, match=r"There is no .*train.json; needed is a bundle's folder"):
        write_plan(data, data, output)
    with pytest.raises(InputError, match="has no folds; the nearest is fold"):
        write_plan(CLINIX, data, output, folds=1, modalty="CT")
    with pytest.raises(InputError, match=r"train\.json has no modality; "):
        write_plan(LUNGS, data, output, modality="CT")
    for file in (data / "imagesTr").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"imagesTr/..nii.gz cannot be read"):
        write_plan(CLINIX, data, output, modality="CT")
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs nnU-Net, which is not installed: pip install"):
        write_plan(CLINIX, data, output)
    assert not output.exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net itself, but for processes and 100 million samples, which take most of its time."""
    module = pytest.importorskip(
        "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor",
        reason="needs the extra: plan",
    )
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(module, "multiprocessing", threads)
    extractor = module.DatasetFingerprintExtractor
    run = extractor.run

    def with_fewer_samples(self: Any) -> Any:
        self.num_foreground_voxels_for_intensitystats = 1e5
        return run(self)

    monkeypatch.setattr(extractor, "run", with_fewer_samples)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Of 2 and of 3 dimensions."""
    root = tmp_path_factory.mktemp("phantoms")
    radiographs = write_phantom(root / "cxr", cases=4, seed=0, kind="cxr", size=70)
    return {2: radiographs, 3: write_phantom(root / "ct", cases=4, seed=0, size=32)}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_trains_by_its_plan(bundle: Path, phantoms: dict[int, Path], tmp_path: Path):
    """The plan's ids are the bundle's, and its network takes what it plans."""
    data = phantoms[2 if bundle in (LUNGS, SKIN) else 3]
    done = write_plan(bundle, data, tmp_path / "plan.json", split=[2, 1, 1])
    assert (done.cases, done.of) == (2, 4)
    config = training(bundle)
    assert all(id_ in config for id_ in done.overrides), done.overrides
    assert {"intensity", "batch_size", "num_classes", "in_channels"} <= done.overrides.keys()
    of_stages = {id_ for id_ in done.overrides if id_.startswith("network_def#")}
    stages = {f"network_def#{x}" for x in ("features", "strides", "kernel_sizes")}
    assert of_stages == (stages if bundle in (CLINIX, UMAMBA) else set())
    spaced = (LIGHTM, CLINIX, UMAMBA, SEGMAMBA, SWIN, HIPPOCAMPUS)
    assert ("spacing" in done.overrides) == (bundle in spaced)

    config.read_config([str(bundle / "configs/train.json"), str(tmp_path / "plan.json")])
    small = {
        "network_def#init_filters": 8,
        "network_def#features": [8] * len(config.get("network_def#features", ())),
        "network_def#hidden_size": 8,
        "network_def#liver#widths": [8] * 5,
        "network_def#tumour#widths": [8] * 5,
    }
    config.update({id_: value for id_, value in small.items() if id_ in config})
    config.update({"device": "cpu"} | ({"stage": "liver"} if "stage" in config else {}))
    size = config.get_parsed_content(plan._size(config))
    assert all(8 <= n <= 96 for n in size), size
    image = torch.randn(1, done.overrides["in_channels"], *size)
    normalised = config.get_parsed_content("intensity")({"image": image[0] * 100})["image"]
    with torch.no_grad():
        logits = config.get_parsed_content("network_def").eval()(normalised[None])
    assert logits.shape[2:] == image.shape[2:]
    assert torch.isfinite(logits).all()


@pytest.mark.usefixtures("quick")
def test_cases_that_do_not_train_leave_no_trace(tmp_path: Path):
    """Others of extreme values, of another size and spacing, and with more classes."""
    data = volumes(tmp_path / "data")
    generator = np.random.default_rng(0)
    label = np.zeros((40, 40, 24), np.uint8)
    label[8:30, 8:30, 6:20] = 1
    label[12:18, 12:18, 8:14] = 2

    def write(name: str, values: np.ndarray, labels: np.ndarray, spacing: float) -> None:
        affine = np.diag([spacing, spacing, 2 * spacing, 1])
        nib.save(nib.Nifti1Image(values, affine), data / f"imagesTr/{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), data / f"labelsTr/{name}.nii.gz")

    for name in "abc":
        write(name, generator.normal(100 * label, 20).astype(np.float32), label, 1.5)
    parts = {"training": ["a", "b"], "validation": ["c"]}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    given = {"modality": "CT", "split_file": str(tmp_path / "parts.json")}
    before = write_plan(LIGHTM, data, tmp_path / "plan.json", **given)
    assert before.overrides["num_classes"] == 3
    assert 150 < before.overrides["intensity"]["a_max"] < 260
    poisoned = np.full((90, 20, 20), 30000, np.float32)
    poisoned[0] = 0
    write("c", poisoned, np.full(poisoned.shape, 7, np.uint8), 0.3)
    after = write_plan(LIGHTM, data, tmp_path / "plan.json", **given)
    assert after == before
    everything = write_plan(LIGHTM, data, tmp_path / "plan.json", modality="CT", split=[3, 0, 0])
    assert everything.overrides["intensity"]["a_max"] == 30000
    assert everything.overrides["num_classes"] == 8


@pytest.mark.usefixtures("quick")
def test_what_is_ignored_is_no_foreground(tmp_path: Path):
    data = volumes(tmp_path / "data")
    label = np.zeros((24, 24, 16), np.uint8)
    label[4:12], label[16:] = 1, 2
    for name in "abc":
        image = np.random.default_rng(0).normal(50 * label, 5).astype(np.float32)
        image[label == 2] = 3000
        nib.save(nib.Nifti1Image(image, np.eye(4)), data / f"imagesTr/{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), data / f"labelsTr/{name}.nii.gz")
    given = {"modality": "CT"}
    counted = write_plan(LIGHTM, data, tmp_path / "plan.json", **given).overrides
    assert (counted["num_classes"], counted["intensity"]["a_max"]) == (3, 3000)
    ignored = write_plan(LIGHTM, data, tmp_path / "plan.json", ignore_label=2, **given).overrides
    assert ignored["num_classes"] == 2
    assert 55 < ignored["intensity"]["a_max"] < 80


@pytest.mark.usefixtures("quick")
def test_pictures_with_masks_of_any_value(tmp_path: Path):
    """JPEG, whose label nnU-Net's own reader would not take, in colours, and PNG of 0 and 255."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((90, 60), np.uint8)
        mask[20:70, 10:50] = 255
        grey = np.random.default_rng(i).normal(mask / 2 + 40, 9).clip(0, 255).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / f"data/images/{i}.jpg")
        Image.fromarray(mask).save(tmp_path / f"data/masks/{i}.png")
    written = write_plan(LUNGS, tmp_path / "data", tmp_path / "plan.json").overrides
    assert (written["in_channels"], written["num_classes"]) == (1, 2)
    width, height = written["image_size"]  # MONAI's first axis of a picture is the horizontal one
    assert height > width >= 56
    assert width % 8 == height % 8 == 0
    assert written["intensity"]["_target_"] == "NormalizeIntensityd"
    assert written["batch_size"] >= 2


@pytest.mark.usefixtures("quick")
def test_a_patch_for_the_grid_that_the_bundle_makes(tmp_path: Path):
    """Half of the voxels in plane: nnU-Net plans half of a patch there, and slices at 2 mm."""
    data = volumes(tmp_path / "data")
    label = np.zeros((96, 96, 20), np.uint8)
    label[30:60, 30:60, 4:12] = 1
    for name in "abc":
        image = np.random.default_rng(0).normal(50 * label, 5).astype(np.float32)
        for folder, values in (("imagesTr", image), ("labelsTr", label)):
            affine = np.diag([1.0, 1.0, 2.0, 1])
            nib.save(nib.Nifti1Image(values, affine), data / f"{folder}/{name}.nii.gz")
    given = {"modality": "CT", "num_classes": 3}
    halved = write_plan(CODEBOOK, data, tmp_path / "plan.json", **given).overrides
    assert halved["slice_spacing"] == 2
    assert halved["patch_size"] == [48, 48, 32]
    assert "in_plane_factor" not in halved
    whole = write_plan(CODEBOOK, data, tmp_path / "plan.json", in_plane_factor=1.0, **given)
    assert whole.overrides["patch_size"] == [96, 96, 32]
    assert whole.overrides["in_plane_factor"] == 1
    # A 2D network sees whole slices across the last axis, resized.
    slices = write_plan(LCMAMBA, data, tmp_path / "plan.json", **given).overrides
    assert slices["patch_size"] == [96, 96]


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
    config = training(CLINIX)
    cases = [{"image": "/none/0.nii.gz", "label": "/none/1.nii.gz"}] * 131
    plans = nnunet_plans(Training(config, {}, cases), {"0": "CT"}, 8, tmp_path, fingerprint)
    theirs = {name: value for name, value in os.environ.items() if name.startswith("nnUNet")}
    assert theirs == {"nnUNet_raw": "/of/the/user"}
    planned = overrides(plans)
    ours = json.loads((CLINIX / "configs/train.json").read_text())
    for name, value in planned.items():
        part: Any = ours
        for key in name.split("#"):
            part = part[key]
        if name != "intensity":
            assert part == value, name
    strides = np.array(planned["network_def#strides"])
    assert np.log2(strides).sum(0)[::-1].tolist() == [4, 5, 5]  # z, y, x, as in the paper


@pytest.mark.usefixtures("quick")
def test_nnunet_plans_for_any_orientation(tmp_path: Path):
    """Thick slices along x, of which one case is stored along another axis."""
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
    given = {"modality": "MR", "split": [1, 0, 0]}
    planned = write_plan(CLINIX, tmp_path, tmp_path / "plan.json", **given).overrides
    assert planned["spacing"] == [6, 1.25, 1]
    assert planned["patch_size"] == [20, 64, 80]
    assert planned["network_def#strides"][1] == [1, 2, 2]
    assert planned["network_def#kernel_sizes"][0] == [1, 3, 3]
    assert planned["num_classes"] == 2


@pytest.mark.slow
def test_plan_command(tmp_path: Path):
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    data = write_phantom(tmp_path / "data", cases=4, seed=0, size=40)
    words = ["--bundle", LIGHTM, "--dataset_dir", data, "--output", tmp_path / "plan.json"]
    done = preloaded.run("common", "plan", *words, "--split", "[2,1,1]", "--split_seed", 1)
    assert done.returncode == 0, done.stderr
    assert "Extracting dataset fingerprint" in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["plan"] == str(tmp_path / "plan.json")
    assert lines["cases"] == "2 of 4, those for training"
    planned = json.loads((tmp_path / "plan.json").read_text())
    zooms = [
        nib.as_closest_canonical(nib.load(case["image"])).header.get_zooms()
        for case in split_cases(data, "training", [2, 1, 1], seed=1)
    ]
    np.testing.assert_allclose(planned["spacing"], np.median(zooms, axis=0), rtol=1e-6)
    assert all(math.isfinite(planned["intensity"][name]) for name in ("a_min", "b_max"))
