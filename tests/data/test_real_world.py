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
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import ITKWriter
from PIL import Image
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless, RLELossless

from common.networks import ELANResMSCAUNet, LightMUNet, LiverTumourCascade

from .. import preloaded
from ..conftest import REPOSITORY
from ..running import overrides
from .series import AFFINE as DICOM_AFFINE
from .series import (
    HU,
    SLICES,
    STORED,
    compress,
    doubled,
    missing,
    multi_frame,
    slice_of,
    tilted,
    with_localisers,
    without_preamble,
    write_series,
)
from .test_ircadb import change as change_tags

pytestmark = pytest.mark.slow

VOLUMES = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
PICTURES = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
SLICEWISE = REPOSITORY / "bundles/liver_tumor_ct_lcmambanet_segmentation"
CASCADE = REPOSITORY / "bundles/liver_tumor_ct_elanres_msca_segmentation"
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SIZE = (18, 16, 14)
NETWORK = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
SMALL: dict[str, Any] = {
    **{f"network_def#{name}": value for name, value in NETWORK.items()},
    "device": "cpu",
    "spacing": [2, 2, 3],
    "patch_size": [16, 16, 8],
}
WIDTHS = [2, 2, 4, 4, 4]  # of each of the cascade's networks
TRAIN = {"train#trainer#max_epochs": 1, "batch_size": 1, "num_workers": 0, "epoch_length": 2}


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
    delta: str | None = None  # a config in the folder, after the bundle's
    options: dict[str, Any] = field(default_factory=dict)
    data: str = "data"
    left: Callable[[Path], object] | None = None


def command(run: Run, folder: Path, weights: dict[Path, Path]) -> tuple[str, list[str]]:
    data = str(folder / run.data)
    if run.config == "check":
        return "common", ["check", "--dataset_dir", data, *overrides(run.options)]
    options: dict[str, Any] = dict(SMALL)
    if run.bundle == PICTURES:
        options = {k: v for k, v in SMALL.items() if k not in ("spacing", "patch_size")}
        options["image_size"] = [32, 32]
    if run.bundle == SLICEWISE:
        options = {"device": "cpu", "patch_size": [32, 32]}
    if run.bundle == CASCADE:
        options = {f"network_def#{name}#widths": WIDTHS for name in ("liver", "tumour")}
        options |= {"device": "cpu", "patch_size": [16, 16, 16]}
    options |= TRAIN if run.config == "train" else {"checkpoint": weights[run.bundle]}
    options |= {"dataset_dir": data, "bundle_root": folder / "root"} | run.options
    files = [str(run.bundle / f"configs/{run.config}.json")]
    files += [str(folder / run.delta)] if run.delta else []
    return "monai.bundle", ["run", "--config_file", str(files), *overrides(options)]


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


UIDS = ("1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2")


def spoiled(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """A series to segment, and what is wrong with it."""

    def make(root: Path) -> None:
        dicom(root)
        spoil(root)

    return make


def labelled_series(
    alter: Callable[[Path], object] = lambda folder: None,
    size: tuple[int, ...] = HU.shape,
    **tags: object,
) -> Callable[[Path], None]:
    """A series with a label on the grid where it is; what is altered is in the series' folder."""

    def make(root: Path) -> None:
        folder = root / "imagesTr/ct"
        folder.mkdir(parents=True)
        write_series(folder, UIDS[0], **tags)
        alter(folder)
        label = np.zeros(size, np.uint8)
        label[2:6, 1:4, 1:4] = 1
        save(root / "labelsTr/ct.nii.gz", label, DICOM_AFFINE)

    return make


def read_as(values: np.ndarray) -> str:
    """What check says of a series whose values these are."""
    size = " x ".join(map(str, values.shape))
    grid = rf"ct: {size}; 0\.7 x 0\.8 x 2\.5 mm LPS; "
    return rf"(?m)^{grid}values {values.min():g} to {values.max():g}, .*; 1: 36 in 1 part$"


def frames(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    multi_frame(folder / "frames.dcm", range(SLICES))


def in_unknown_jpeg(folder: Path) -> None:
    """Bytes that say they are JPEG XL, which pydicom neither decodes nor writes."""
    compress(folder, RLELossless)
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = HTJ2KLossless
        data.save_as(file)
        content = file.read_bytes()
        assert content.count(HTJ2KLossless.encode()) == 1
        file.write_bytes(content.replace(HTJ2KLossless.encode(), b"1.2.840.10008.1.2.4.110"))


WIDE = np.tile(HU, (8, 8, 1))  # JPEG 2000 has no smaller slices


def in_jpeg_2000(folder: Path) -> None:
    for n in range(SLICES):
        pixels = np.tile(STORED[n], (8, 8))
        size = {"Rows": pixels.shape[0], "Columns": pixels.shape[1]}
        change_tags(slice_of(folder, n), PixelData=pixels.tobytes(), **size)
    compress(folder, JPEG2000Lossless)


def rescaled(folder: Path) -> None:
    change_tags(slice_of(folder, 2), RescaleSlope=3, RescaleIntercept=-24)
    change_tags(slice_of(folder, 3), RescaleSlope="0.5", RescaleIntercept="-2000.25")


def as_rescaled() -> np.ndarray:
    values = HU.astype(np.float64)
    values[..., 2] = 3.0 * STORED[2].T - 24
    values[..., 3] = 0.5 * STORED[3].T - 2000.25
    return values


def bare(folder: Path) -> None:
    for file in list(folder.iterdir()):
        without_preamble(file, meta=False)
        file.rename(file.with_suffix(""))


def two_phases(root: Path) -> None:
    """In folders of one patient: the second has a slice less."""
    for uid, slices in zip(UIDS, (SLICES, SLICES - 1), strict=True):
        folder = root / "patient" / uid[-1]
        folder.mkdir(parents=True)
        write_series(folder, uid, range(slices))


def of_second_phase(folder: Path) -> None:
    (written,) = folder.glob("root/eval/**/patient_seg.nii.gz")
    assert nib.load(written).shape == (*HU.shape[:2], SLICES - 1)


def brats_of_2021(root: Path) -> None:
    """With the value 4 and none of 3, and the regions of docs/regions.md."""
    brats(root)
    label = mask()
    label[7, 7, 6:8] = 4
    for file in root.glob("*/*_seg.nii.gz"):
        save(file, label)
    page = (REPOSITORY / "docs/regions.md").read_text()
    (config,) = re.findall(r"`regions_train\.json`.*?```json\n(.*?)```", page, re.S)
    (root.parent / "regions_train.json").write_text(config)


def three_regions(folder: Path) -> None:
    state = torch.load(folder / "root/models/model.pt", weights_only=True)
    assert state["head.conv.pointwise.weight"].shape[0] == 3


def five_channels(root: Path) -> None:
    nnunet(root)
    about = json.loads((root / "dataset.json").read_text()) | {"channel_names": 5}
    (root / "dataset.json").write_text(json.dumps(about))


def patients(root: Path) -> None:
    """Everywhere the same names, in a list beside."""
    for n in range(4):
        save(root / f"p{n}/ct.nii.gz", scan(n))
        save(root / f"p{n}/seg.nii.gz", mask())
    lines = [f"p{n}/ct.nii.gz,p{n}/seg.nii.gz" for n in range(4)]
    (root / "cases.csv").write_text("\n".join(["image,label", *lines]))


def called(name: str) -> Callable[[Path], None]:
    return lambda root: folders(root.parent / name) and None


MERGED = np.array([0, 2, 5], np.float32)[mask().astype(int)]
EMPTY = np.zeros(SIZE, np.float32)
GEOMETRIES = r"not on the grid of its image .*18 x 16 x 14 voxels of .* mm, origin .*, the image 18"
TWO = {"in_channels": 2}
LEFT_OUT = "1 of 1 images were left out"

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
        folders, "num_classes is 1", bundle=SLICEWISE, options={"num_classes": 1}
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
    "gantry tilt": Run(spoiled(tilted), rf"{LEFT_OUT}.*\(gantry tilt\)", config="inference"),
    "a slice is missing": Run(spoiled(missing), rf"{LEFT_OUT}.*lacks slices", config="inference"),
    "a slice is doubled": Run(
        spoiled(doubled), rf"{LEFT_OUT}.*1 slices at the place of another", config="inference"
    ),
    "localisers beside a series": Run(
        labelled_series(partial(with_localisers, uid=UIDS[0])), config="check", said=read_as(HU)
    ),
    "enhanced multi-frame": Run(
        labelled_series(frames), config="check", said=read_as(HU - np.arange(SLICES))
    ),
    "JPEG 2000": Run(labelled_series(in_jpeg_2000, WIDE.shape), config="check", said=read_as(WIDE)),
    "JPEG-LS": Run(
        labelled_series(partial(compress, syntax=JPEGLSLossless)), config="check", said=read_as(HU)
    ),
    "JPEG XL": Run(
        spoiled(in_unknown_jpeg),
        rf"{LEFT_OUT}.*\.dcm cannot be decoded .* in a transfer syntax that pydicom knows",
        config="inference",
    ),
    "MONOCHROME1": Run(
        labelled_series(Modality="MR", PhotometricInterpretation="MONOCHROME1"),
        config="check",
        said=read_as(65535 - (HU + 1000) - 1000),
    ),
    "MONOCHROME1 in HU": Run(
        labelled_series(PhotometricInterpretation="MONOCHROME1"), config="check", said=read_as(HU)
    ),
    "a rescale for each slice": Run(
        labelled_series(rescaled), config="check", said=read_as(as_rescaled())
    ),
    "DICOM without its first bytes": Run(labelled_series(bare), config="check", said=read_as(HU)),
    "several series": Run(
        two_phases, rf"{LEFT_OUT}.*holds 2 series: {UIDS[0]} .*{UIDS[1]} ", config="inference"
    ),
    "several series, one by its UID": Run(
        two_phases, config="inference", options={"series_uid": UIDS[1]}, left=of_second_phase
    ),
    "BraTS's regions": Run(
        brats_of_2021,
        delta="regions_train.json",
        options={"in_channels": 4, "num_classes": 4, "label_map": "{0: 0, 1: 1, 2: 2, 4: 3}"},
        left=three_regions,
    ),
    "a stage that was never trained": Run(
        to_segment("a.nii.gz"),
        "The tumour's network was never trained; train it with --stage tumor",
        config="inference",
        bundle=CASCADE,
        left=masks(),
    ),
    "names that leave no room for a mask's": Run(
        to_segment(f"{'a' * 247}.nii.gz", "b.nii.gz"),
        r"a_seg\.nii\.gz \(File name too long\) cannot be written",
        config="inference",
        left=masks(),
    ),
    "a radiograph as a volume of one slice": Run(
        lambda file: save(file, scan(0)[:, :, :1]),
        config="inference",
        bundle=PICTURES,
        data="one.nii.gz",
        left=masks("one_seg.png"),
    ),
    "a training folder to segment": Run(
        folders, r"holds no image; .*images are in .*data/imagesTr\.$", config="inference"
    ),
    "a switch in words": Run(
        to_segment("a.nii.gz"),
        "test_time_flips is 'no'; allowed are True and False",
        config="inference",
        options={"test_time_flips": "no"},
    ),
    "one case left out": Run(folders, options={"exclude": "c0"}, said="exclude leaves out 1"),
    "cases called alike": Run(
        patients, config="check", options={"cases": "data/cases.csv"}, said="(?m)^p3/seg: 18 x"
    ),
    "channel_names that are a number": Run(five_channels, "has channel_names 5; allowed are"),
    "nnU-Net's fold all": Run(folders, "fold is 'all'; allowed are", options={"fold": "all"}),
    "three cases by 7:1:2": Run(
        lambda root: folders(root, cases=3), said="leaves none for validation: it gets one"
    ),
    "a case without foreground": Run(
        lambda root: folders(root) and change(root / "labelsTr/c2.nii.gz", EMPTY)
    ),
    "no case with foreground": Run(with_labels_like(EMPTY)),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Of a network of each bundle; of the cascade the liver's alone was trained."""
    torch.manual_seed(0)
    cascade = LiverTumourCascade(*(ELANResMSCAUNet(1, 1, widths=WIDTHS) for _ in range(2)))
    cascade.liver.num_batches_trained.fill_(1)
    networks = {
        VOLUMES: LightMUNet(3, 1, 3, **NETWORK),  # type: ignore[arg-type]
        PICTURES: LightMUNet(2, 1, 2, **NETWORK),  # type: ignore[arg-type]
        CASCADE: cascade,
    }
    folder = tmp_path_factory.mktemp("weights")
    files = {bundle: folder / f"{bundle.name}.pt" for bundle in networks}
    for bundle, network in networks.items():
        torch.save({"model": network.state_dict()}, files[bundle])
    return files


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, tmp_path: Path, weights: dict[Path, Path]):
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


# Names of the released code of LightM-UNet for ours.
RELEASED = {
    r"stem\.depthwise\.": "convInit.0.conv.",
    r"stem\.pointwise\.": "convInit.1.conv.",
    r"encoder\.(\d+)\.down\.0\.": r"down_layers.\1.0.0.",
    r"encoder\.(\d+)\.blocks\.0\.norm": r"down_layers.\1.1.norm",
    r"encoder\.(\d+)\.blocks\.0\.layer(\d)\.": r"down_layers.\1.1.conv\2.",
    r"decoder\.(\d+)\.reduce\.": r"up_samples.\1.0.conv.",
    r"decoder\.(\d+)\.blocks\.(\d+)\.conv\.depthwise\.": r"up_layers.\1.\2.conv.0.conv.",
    r"decoder\.(\d+)\.blocks\.(\d+)\.conv\.pointwise\.": r"up_layers.\1.\2.conv.1.conv.",
    r"decoder\.(\d+)\.blocks\.(\d+)\.": r"up_layers.\1.\2.",
    r"head\.norm\.": "conv_final.0.",
    r"head\.conv\.depthwise\.": "conv_final.2.0.conv.",
    r"head\.conv\.pointwise\.": "conv_final.2.1.conv.",
}


def released(name: str) -> str:
    for ours, theirs in RELEASED.items():
        new, found = re.subn(f"^{ours}", theirs, name)
        if found:
            return new.replace(".mixer.", ".mamba.")
    raise AssertionError(f"{name} has no name in the released code")


def test_a_checkpoint_of_released_code_and_its_axes(tmp_path: Path):
    """nnU-Net gives its networks arrays (z, y, x) of a file whose axes are L, P and S."""
    torch.manual_seed(2)
    network = LightMUNet(3, 1, 3, **NETWORK).eval()  # type: ignore[arg-type]
    state = {released(name): x for name, x in network.state_dict().items()}
    torch.save({"network_weights": state}, tmp_path / "checkpoint_final.pth")
    options = {"checkpoint": "checkpoint_final.pth", "network": "lightm_unet", "output": "model.pt"}
    options |= {"spacing": [3, 2, 2], "patch_size": [8, 12, 16], "intensity": [-200, 250, 25, 100]}
    done = preloaded.run("common", "convert", *overrides(options), cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    values = np.random.default_rng(0).normal(40, 120, (16, 12, 8)).astype(np.float32)
    save(tmp_path / "data/a.nii.gz", values, np.diag([-2.0, -2.0, 3.0, 1.0]))
    scaled = torch.from_numpy((values.clip(-200, 250) - 25) / 100)
    with torch.no_grad():
        right = network(scaled.permute(2, 1, 0)[None, None])[0].argmax(0).permute(2, 1, 0)
        turned = network(scaled.flip(0, 1)[None, None])[0].argmax(0).flip(0, 1)
    assert len(right.unique()) > 1
    assert not torch.equal(right, turned), "the order of the axes counts"
    order = {"axcodes": "SPL", "spacing": [3, 2, 2], "patch_size": [8, 12, 16]}
    run = Run(lambda root: None, config="inference", options=order)
    module, arguments = command(run, tmp_path, {VOLUMES: tmp_path / "model.pt"})
    done = preloaded.run(module, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = nib.load(tmp_path / "root/eval/a_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), right)
