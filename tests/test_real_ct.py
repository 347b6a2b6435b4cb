"""The READMEs' runs on one real CT, and masks of the whole trunk from LightM-UNet's weights."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to, resample_to_output

from .conftest import REPOSITORY, shared

BUNDLE = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
LCMAMBANET = REPOSITORY / "bundles/liver_tumor_ct_lcmambanet_segmentation"

pytestmark = pytest.mark.slow


def commands(bundle: Path = BUNDLE) -> list[str]:
    """The commands of the README's section: training, inference (or none), evaluation."""
    section = (bundle / "docs/README.md").read_text().split("## A run on one real CT")[1]
    return re.findall(r"((?:^    .*\n)+)", re.split(r"\n##+ ", section)[0], re.M)


def run(command: str, bundle: Path = BUNDLE, **options: object) -> None:
    """Run a command in the bundle's folder as a shell does, with overrides after it."""
    extra = " ".join(f"--{name} {value}" for name, value in options.items())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{command.strip()} {extra}"],
        cwd=bundle,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "PATH": path},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared("data/real_ct/ct.nii.gz")
    folder = tmp_path_factory.mktemp("real_ct")
    run(commands()[0], bundle_root=folder)
    return folder


def segment(root: Path, image: Path) -> nib.Nifti1Image:
    run(commands()[1], bundle_root=root, dataset_dir=image, output_dir=root / "masks")
    mask = nib.load(root / "masks" / image.name.replace(".nii.gz", "_seg.nii.gz"))
    scan = nib.load(image)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert nib.aff2axcodes(mask.affine) == nib.aff2axcodes(scan.affine)
    return mask


def dice(first: nib.Nifti1Image, second: nib.Nifti1Image) -> float:
    a, b = (np.asarray(nib.as_closest_canonical(x).dataobj) > 0 for x in (first, second))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def trunk_mask(root: Path) -> nib.Nifti1Image:
    return segment(root, shared("data/real_ct/ct_trunk.nii.gz"))


def liver_dice(evaluation: Path) -> float:
    with (evaluation / "metrics.csv").open() as table:
        scores = dict(row for row in csv.reader(table) if len(row) == 2)
    return float(scores["val_dice_class_1"])


def test_liver_of_the_training_case(root: Path, record_property):
    run(commands()[2], bundle_root=root, output_dir=root / "evaluation")
    dice = liver_dice(root / "evaluation")
    record_property("dice", dice)
    assert dice >= 0.90


def test_liver_by_slices_with_lcmambanet(tmp_path: Path, record_property):
    shared("data/real_ct/ct.nii.gz")
    train, evaluate = commands(LCMAMBANET)
    run(train, LCMAMBANET, bundle_root=tmp_path)
    run(evaluate, LCMAMBANET, bundle_root=tmp_path, output_dir=tmp_path / "evaluation")
    dice = liver_dice(tmp_path / "evaluation")
    record_property("dice", dice)
    assert dice >= 0.90


def test_mask_of_the_trunk_has_the_liver(trunk_mask: nib.Nifti1Image):
    """The training case is the trunk's slab from slice 82: there the liver is known."""
    scan, trunk = (nib.load(shared(f"data/real_ct/{name}.nii.gz")) for name in ("ct", "ct_trunk"))
    slab = slice(82, 82 + scan.shape[2])
    np.testing.assert_array_equal(np.asarray(trunk.dataobj)[..., slab], np.asarray(scan.dataobj))
    liver = nib.load(shared("data/real_ct/liver.nii.gz"))
    found = nib.Nifti1Image(np.asarray(trunk_mask.dataobj)[..., slab], liver.affine)
    assert dice(found, liver) >= 0.85


def test_other_orientation_same_liver(root: Path, trunk_mask: nib.Nifti1Image, tmp_path: Path):
    image = nib.load(shared("data/real_ct/ct_trunk.nii.gz"))
    orientation = nib.orientations
    change = orientation.ornt_transform(
        orientation.io_orientation(image.affine), orientation.axcodes2ornt("LPS")
    )
    nib.save(image.as_reoriented(change), tmp_path / "lps.nii.gz")
    mask = segment(root, tmp_path / "lps.nii.gz")
    assert nib.aff2axcodes(mask.affine) == ("L", "P", "S")
    assert dice(mask, trunk_mask) >= 0.999


def test_other_spacing_nearly_same_liver(root: Path, trunk_mask: nib.Nifti1Image, tmp_path: Path):
    image = nib.load(shared("data/real_ct/ct_trunk.nii.gz"))
    coarse = resample_to_output(image, (2, 2, 5), order=1, cval=-1024)
    nib.save(coarse, tmp_path / "coarse.nii.gz")
    mask = segment(root, tmp_path / "coarse.nii.gz")
    back = resample_from_to(mask, trunk_mask, order=0)
    assert dice(back, trunk_mask) >= 0.88  # splines keep the noise of finer voxels, unlike order 1
