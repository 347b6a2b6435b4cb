"""Files and folders as they are in the field, through the command lines: which work, which do not.

Each row makes a small data set, runs one command line, and says what comes of it: "done", or what
the one sentence of its refusal has to hold.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKWriter
from PIL import Image

from common.networks import LightMUNet

from .. import preloaded
from ..conftest import REPOSITORY
from ..running import overrides
from .series import write_series

pytestmark = pytest.mark.slow

VOLUMES = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
PICTURES = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
SLICES = REPOSITORY / "bundles/liver_tumor_ct_lcmambanet_segmentation"
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SIZE = (18, 16, 14)
NETWORK = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
SMALL: dict[str, Any] = {
    **{f"network_def#{name}": value for name, value in NETWORK.items()},
    "device": "cpu",
    "spacing": [2, 2, 3],
    "patch_size": [16, 16, 8],
}
TRAIN = {"train#trainer#max_epochs": 1, "batch_size": 1, "num_workers": 0}


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(60, 40, SIZE).astype(np.float32)


def mask() -> np.ndarray:
    label = np.zeros(SIZE, np.float32)
    label[3:13, 3:13, 3:11], label[6:9, 6:9, 5:8] = 1, 2
    return label


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values, affine), path)
    else:
        writer = ITKWriter(output_dtype=values.dtype)
        writer.set_data_array(values, channel_dim=None)
        writer.set_metadata({"affine": affine, "original_affine": affine})
        writer.write(path)
    return path


def folders(root: Path, cases: int = 4, ending: str = ".nii.gz") -> Path:
    """imagesTr and labelsTr, as everything below changes them."""
    for n in range(cases):
        save(root / f"imagesTr/c{n}{ending}", scan(n))
        save(root / f"labelsTr/c{n}{ending}", mask())
    return root


def change(path: Path, values: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> None:
    loaded = nib.load(path)
    save(path, np.asarray(loaded.dataobj) if values is None else values, affine)


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = mm
    return affine


@dataclass
class Run:
    """A command line; `done` looks at what it left in the folder, or `refused` at its sentence."""

    make: Callable[[Path], object]
    refused: str = ""  # a pattern in the sentence
    said: str = ""  # a pattern in what is printed of a run that is done
    config: str = "train"
    bundle: Path = VOLUMES
    options: dict[str, Any] = field(default_factory=dict)
    data: str = "data"
    left: Callable[[Path], object] | None = None


def command(run: Run, folder: Path, weights: Path) -> tuple[str, list[str]]:
    data = str(folder / run.data)
    if run.config == "check":
        return "common", ["check", "--dataset_dir", data, *overrides(run.options)]
    options: dict[str, Any] = dict(SMALL)
    if run.bundle == PICTURES:
        options = {k: v for k, v in SMALL.items() if k not in ("spacing", "patch_size")}
        options["image_size"] = [32, 32]
    if run.bundle == SLICES:
        options = {"device": "cpu", "patch_size": [32, 32]}
    options |= TRAIN if run.config == "train" else {"checkpoint": weights}
    options |= {"dataset_dir": data, "bundle_root": folder / "root"} | run.options
    file = run.bundle / f"configs/{run.config}.json"
    return "monai.bundle", ["run", "--config_file", str(file), *overrides(options)]


def with_label(**of: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        for n in range(4):
            change(root / f"labelsTr/c{n}.nii.gz", **of)

    return make


def with_labels_like(values: np.ndarray) -> Callable[[Path], None]:
    return with_label(values=values)


def with_image(**of: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        change(root / "imagesTr/c1.nii.gz", **of)

    return make


def with_affine(path: Path, affine: np.ndarray) -> None:
    """A volume with an sform that nibabel would not set."""
    header = nib.Nifti1Image(scan(1), AFFINE).header
    header["qform_code"], header["sform_code"] = 0, 1
    for row, values in zip("xyz", affine, strict=False):
        header[f"srow_{row}"] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan(1), None, header), path)


def with_image_at(affine: np.ndarray) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        with_affine(root / "imagesTr/c1.nii.gz", affine)

    return make


def twice(*files: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        for file in files:
            save(root / file, scan(0))

    return make


def upper(root: Path) -> None:
    folders(root)
    for file in [*root.glob("imagesTr/*"), *root.glob("labelsTr/*")]:
        file.rename(file.with_name(file.name.upper()))


def two_frames(root: Path) -> None:
    """A qform that is another than the sform, of an image to segment."""
    image = nib.Nifti1Image(scan(0), AFFINE)
    image.set_qform(moved(7.0), code=1)
    image.set_sform(AFFINE, code=4)
    root.mkdir(parents=True, exist_ok=True)
    nib.save(image, root / "scan.nii.gz")


def same_frames(folder: Path) -> None:
    image = nib.load(folder / "data/scan.nii.gz").header
    (written,) = folder.glob("root/eval/*_seg.nii.gz")
    header = nib.load(written).header
    for name in ("qform_code", "sform_code"):
        assert int(header[name]) == int(image[name])
    np.testing.assert_allclose(header.get_qform(), image.get_qform(), atol=1e-4)
    np.testing.assert_allclose(header.get_sform(), image.get_sform(), atol=1e-4)


def lits(root: Path) -> None:
    """As downloaded; cases that 3D-IRCADb has too cannot be read here, so none may be tried."""
    for n in (0, 1, 2, 27, 28, 47, 48):
        save(root / f"Training Batch {1 + n // 28}/volume-{n}.nii", scan(n))
        save(root / f"Training Batch {1 + n // 28}/segmentation-{n}.nii", mask())
    for n in (28, 47):
        (root / f"Training Batch 2/volume-{n}.nii").write_bytes(b"not to be read")


def lits_without_spacing(root: Path) -> None:
    for n in range(3):
        values = np.zeros((512, 512, 2), np.int16)
        values[100:200], values[200:300, 0] = 50 + n, 20
        save(root / f"volume-{n}.nii", values, np.eye(4))
        save(root / f"segmentation-{n}.nii", (values > 30).astype(np.uint8), np.eye(4))


def described(change_list: Callable[[dict, Path], None], bom: bool = False) -> Callable:
    """A Decathlon's folder, of which dataset.json says otherwise than it should."""

    def make(root: Path) -> None:
        folders(root)
        names = [f"c{n}.nii.gz" for n in range(4)]
        about: dict[str, Any] = {
            "training": [{"image": f"imagesTr/{n}", "label": f"labelsTr/{n}"} for n in names],
            "numTraining": 4,
        }
        change_list(about, root)
        text = json.dumps(about)
        (root / "dataset.json").write_text(text, encoding="utf-8-sig" if bom else "utf-8")

    return make


def strings(about: dict, root: Path) -> None:
    about["training"] = [case["image"] for case in about["training"]]


def channel_lists(about: dict, root: Path) -> None:
    for case in about["training"]:
        case["image"] = [case["image"], case["image"]]


def validation(about: dict, root: Path) -> None:
    about["validation"] = [about["training"].pop()]
    about["test"] = []


def folds(about: dict, root: Path) -> None:
    for n, case in enumerate(about["training"]):
        case["fold"] = n % 2


def nnunet(root: Path) -> None:
    """Two channels, another ending, names of labels, and an ignore label."""
    label = mask()
    label[0] = 3
    for n in range(4):
        for channel in range(2):
            save(root / f"imagesTr/c{n}_000{channel}.nrrd", scan(2 * n + channel))
        save(root / f"labelsTr/c{n}.nrrd", label)
    about = {
        "channel_names": {"0": "CT", "1": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
        "numTraining": 4,
        "file_ending": ".nrrd",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    split = [{"train": ["c0", "c1", "c2"], "val": ["c3"]}]
    (root / "splits_final.json").write_text(json.dumps(split))


def brats(root: Path) -> None:
    for n in range(4):
        for number, part in enumerate(("flair", "t1", "t1ce", "t2")):
            save(root / f"BraTS_{n:03d}/BraTS_{n:03d}_{part}.nii.gz", scan(4 * n + number))
        save(root / f"BraTS_{n:03d}/BraTS_{n:03d}_seg.nii.gz", mask())


def pictures(ending: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        for n in range(4):
            values = np.random.default_rng(n).integers(0, 255, (40, 36)).astype(np.uint8)
            lungs = np.zeros((40, 36), np.uint8)
            lungs[10:30, 8:28] = 1
            Image.fromarray(values).save(root / f"imagesTr/p{n}{ending}")
            Image.fromarray(lungs).save(root / f"labelsTr/p{n}.png")

    return make


def published(root: Path) -> None:
    for n, part in enumerate(("train", "train", "valid", "test")):
        save(root / f"{part}/images/c{n}.nii.gz", scan(n))
        save(root / f"{part}/labels/c{n}.nii.gz", mask())


def to_segment(*names: str, broken: str | None = None) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for n, name in enumerate(names):
            save(root / name, scan(n))
        if broken is not None:
            file = root / broken
            file.write_bytes(file.read_bytes()[:2000])

    return make


def with_mask(root: Path) -> None:
    to_segment("a.nii.gz", "b.nii.gz")(root)
    (root.parent / "root/eval").mkdir(parents=True)
    (root.parent / "root/eval/a_seg.nii.gz").write_text("kept")


def kept(folder: Path) -> None:
    assert (folder / "root/eval/a_seg.nii.gz").read_text() == "kept"
    assert (folder / "root/eval/b_seg.nii.gz").stat().st_size > 100


def masks(*names: str) -> Callable[[Path], None]:
    def left(folder: Path) -> None:
        found = sorted(file.name for file in folder.glob("root/eval/**/*_seg.*"))
        assert found == sorted(names)

    return left


def dicom(root: Path) -> None:
    root.mkdir(parents=True)
    write_series(root)


def zipped(root: Path) -> None:
    dicom(root.parent / "series")
    root.mkdir()
    shutil.make_archive(str(root / "series"), "zip", root.parent / "series")


def two_series(root: Path) -> None:
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        write_series(root / folder, **{"SeriesDescription": f"phase {folder}"})


def called(name: str) -> Callable[[Path], None]:
    return lambda root: folders(root.parent / name) and None


MERGED = np.array([0, 2, 5], np.float32)[mask().astype(int)]
EMPTY = np.zeros(SIZE, np.float32)
GEOMETRIES = r"not on the grid of its image .*18 x 16 x 14 voxels of .* mm, origin .*, the image 18"
TWO = {"in_channels": 2}

ROWS: dict[str, Run] = {
    # Silent before, and wrong.
    "label flipped": Run(with_label(affine=np.diag([-2.0, 2, 3, 1])), GEOMETRIES),
    "label 50 mm off": Run(with_label(affine=moved(50.0)), GEOMETRIES),
    "label with identity": Run(with_label(affine=np.eye(4)), GEOMETRIES),
    "label a bit off": Run(with_label(affine=moved(0.1)), said="takes the image's geometry"),
    "affine of NaN": Run(
        with_image_at(np.full((4, 4), np.nan)), r"c1\.nii\.gz has the affine .*nan"
    ),
    "affine singular": Run(
        with_image_at(np.diag([2.0, 0.0, 3.0, 1.0])), r"c1\.nii\.gz has the affine"
    ),
    "affine singular, inference": Run(
        lambda root: with_affine(root / "s.nii.gz", np.diag([2.0, 0.0, 3.0, 1.0])),
        r"1 of 1 images were left out.*s\.nii\.gz has the affine",
        config="inference",
    ),
    "same.nii and same.nii.gz to segment": Run(
        to_segment("same.nii", "same.nii.gz"), r"same\.nii and .*same\.nii\.gz", config="inference"
    ),
    "c0.nii beside c0.nii.gz": Run(twice("imagesTr/c0.nii"), r"c0\.nii and .*c0\.nii\.gz"),
    "UPPER.NII.GZ": Run(upper),
    "UPPER.NII.GZ to segment": Run(
        to_segment("a.nii.gz", "B.NII.GZ"),
        config="inference",
        left=masks("a_seg.nii.gz", "B_seg.nii.gz"),
    ),
    "complex image": Run(
        with_image(values=scan(1).astype(np.complex64)), r"c1\.nii\.gz has complex values"
    ),
    "qform differs from sform": Run(two_frames, config="inference", left=same_frames),
    "LiTS without its spacing": Run(
        lits_without_spacing, config="check", said="spacing was probably lost"
    ),
    "LiTS without 3D-IRCADb": Run(lits, options={"exclude": "lits_without_ircadb"}),
    "LCMambaNet of one channel": Run(
        folders, "num_classes is 1", bundle=SLICES, options={"num_classes": 1}
    ),
    # Loud before, and to work.
    "labels of 0.99999": Run(with_labels_like(mask() * 0.99999)),
    "labels of 0.5": Run(with_labels_like(mask() * 0.5), r"has the values 0\.5"),
    "labels 0, 2, 5": Run(with_labels_like(MERGED), r"c\d\.nii\.gz has the values 5"),
    "labels 0, 2, 5 by a map": Run(
        with_labels_like(MERGED), options={"label_map": "{0: 0, 2: 1, 5: 2}"}
    ),
    "the liver alone": Run(folders, options={"num_classes": 2, "label_map": "{0: 0, 1: 1, 2: 1}"}),
    "tumours alone": Run(folders, options={"num_classes": 2, "label_map": "{0: 0, 1: 0, 2: 1}"}),
    "nnU-Net raw with an ignore label": Run(nnunet, options={"ignore_label": 3, **TWO}),
    "nnU-Net's splits_final": Run(nnunet, options={"ignore_label": 3, "fold": 0, **TWO}),
    "channels to segment": Run(
        to_segment("a_0000.nii.gz", "a_0001.nii.gz"),
        "2 channels; allowed are 1",
        config="inference",
    ),
    "one corrupt scan of three": Run(
        to_segment("a.nii.gz", "b.nii.gz", "c.nii.gz", broken="b.nii.gz"),
        r"1 of 3 images were left out.*b\.nii\.gz cannot be read",
        config="inference",
        left=masks("a_seg.nii.gz", "c_seg.nii.gz"),
    ),
    "one corrupt scan, strict": Run(
        to_segment("a.nii.gz", "b.nii.gz", "c.nii.gz", broken="b.nii.gz"),
        r"b\.nii\.gz cannot be read",
        config="inference",
        options={"strict": True},
        left=masks("a_seg.nii.gz"),
    ),
    "masks that exist": Run(with_mask, config="inference", options={"overwrite": False}, left=kept),
    "a folder called 1234": Run(called("1234"), data="1234"),
    "a folder called a,b": Run(called("a,b"), data="a,b"),
    "a folder called me@home": Run(called("me@home"), data="me@home"),
    "dataset.json with a BOM": Run(described(lambda about, root: None, bom=True)),
    "dataset.json of strings": Run(described(strings)),
    "dataset.json of channel files": Run(described(channel_lists), options=TWO),
    "dataset.json with validation": Run(described(validation)),
    "dataset.json with folds": Run(described(folds), options={"fold": 1}),
    "dataset.json that cannot count": Run(
        described(lambda about, root: about.update(numTraining=9)), said="numTraining.* 9"
    ),
    "LiTS as downloaded": Run(lits, r"volume-(28|47)\.nii cannot be read"),
    "BraTS": Run(brats, options={"in_channels": 4}),
    "train, valid and test": Run(published),
    "NRRD": Run(lambda root: folders(root, ending=".nrrd")),
    "MHA": Run(lambda root: folders(root, ending=".mha")),
    "MHD": Run(lambda root: folders(root, ending=".mhd")),
    "NRRD to segment": Run(
        to_segment("a.nrrd", "b.mha"),
        config="inference",
        left=masks("a_seg.nii.gz", "b_seg.nii.gz"),
    ),
    "PNG": Run(pictures(".png"), bundle=PICTURES),
    "JPEG": Run(pictures(".JPEG"), bundle=PICTURES),
    "TIFF": Run(pictures(".tif"), bundle=PICTURES),
    "BMP": Run(pictures(".bmp"), bundle=PICTURES),
    "DICOM folder": Run(dicom, config="inference", left=masks("data_seg.nii.gz")),
    "DICOM zip": Run(zipped, config="inference", left=masks("series_seg.nii.gz")),
    "DICOM in folders": Run(
        two_series, config="inference", left=masks("a_seg.nii.gz", "b_seg.nii.gz")
    ),
    "three cases by 7:1:2": Run(
        lambda root: folders(root, cases=3), said="leaves none for validation: it gets one"
    ),
    "a case without foreground": Run(
        lambda root: folders(root) and change(root / "labelsTr/c2.nii.gz", EMPTY)
    ),
    "no case with foreground": Run(with_labels_like(EMPTY)),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"model": LightMUNet(3, 1, 3, **NETWORK).state_dict()}, file)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, tmp_path: Path, weights: Path):
    run = ROWS[name]
    run.make(tmp_path / run.data)
    before = {
        file: file.read_bytes() for file in (tmp_path / run.data).rglob("*") if file.is_file()
    }
    module, arguments = command(run, tmp_path, weights)
    done = preloaded.run(module, *arguments, cwd=tmp_path)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output[-3000:]
    if run.refused:
        assert done.returncode == 1, output[-2000:]
        sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, output[-2000:]
        assert re.search(run.refused, sentences[0]), sentences[0]
    else:
        assert done.returncode == 0, output[-3000:]
        assert re.search(run.said, output), output[-2000:]
        if run.config == "train":
            assert (tmp_path / "root/models/model.pt").is_file()
    if run.left is not None:
        run.left(tmp_path)
    assert before == {file: file.read_bytes() for file in before}, "the data are as they were"
