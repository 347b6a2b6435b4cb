"""Phantoms as data sets on disk, decided byte by byte by a seed.

Kinds ``ct`` and ``mr`` are laid out like the Medical Segmentation Decathlon (MSD,
http://medicaldecathlon.com), kind ``cxr`` like the Montgomery County set (Jaeger et al., Quant
Imaging Med Surg 4(6), 2014).
"""

from __future__ import annotations

import gzip
import io
import json
import math
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from ...errors import InputError
from ...files import replacing
from .ct import ct_case
from .cxr import cxr_case
from .mr import mr_case
from .shapes import Array

_SIZES = {"ct": (112, 32, 512), "mr": (36, 24, 256), "cxr": (288, 64, 2048)}
_VOLUME = ("image", "label")
_ROLES = {"ct": _VOLUME, "mr": _VOLUME, "cxr": ("image", "leftMask", "rightMask")}
_ORIENTATIONS = ("RAS", "LPS", "LAS", "RSP")
_UNFINISHED = ".phantom-unfinished"
_FILES = (
    "imagesT[rs]/liver_*.nii.gz",
    "labelsT[rs]/liver_*.nii.gz",
    "imagesT[rs]/hippocampus_*.nii.gz",
    "labelsT[rs]/hippocampus_*.nii.gz",
    "CXR_png/MCUCXR_*.png",
    "ManualMask/*Mask/MCUCXR_*.png",
)
_ABOUT: dict[str, dict[str, Any]] = {
    "ct": {
        "name": "Liver phantom",
        "description": "Synthetic portal-venous CT: liver and liver tumours",
        "reference": "python -m common phantom",
        "licence": "CC0 1.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
    },
    "mr": {
        "name": "Hippocampus phantom",
        "description": "Synthetic T1-weighted MR: anterior and posterior hippocampus",
        "reference": "python -m common phantom",
        "licence": "CC0 1.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
    },
    "cxr": {
        "name": "Chest X-ray phantom",
        "description": "Synthetic frontal chest radiographs: lungs",
        "reference": "python -m common phantom",
        "licence": "CC0 1.0",
        "release": "1.0",
        "tensorImageSize": "2D",
        "modality": {"0": "X-ray"},
        "labels": {"0": "background", "1": "lung"},
    },
}


def write_phantom(
    output: str | Path,
    cases: int = 8,
    seed: int = 0,
    kind: Literal["ct", "mr", "cxr"] = "ct",
    size: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a synthetic data set and return its folder.

    ``ct`` and ``mr`` write ``cases`` labelled training volumes and a fifth as many test volumes,
    whose labels lie in ``labelsTs`` (as in MSD, ``dataset.json`` does not list them). ``cxr``
    writes ``cases`` radiographs; a name ends in 1 instead of 0 where the lungs have opacities.
    Equal arguments give equal bytes, and the contents of case i do not depend on ``cases``.

    Args:
        output: a new or empty folder, or one with an earlier phantom, which is replaced.
        cases: at least 1.
        seed: at least 0.
        kind: ``"ct"``, ``"mr"`` or ``"cxr"``.
        size: about how many voxels wide a CT is (32 to 512, default 112) or an MR (24 to 256,
            default 36), or pixels a radiograph (64 to 2048, default 288); the field of view stays
            the same.
        progress: show a bar on standard error.

    Raises:
        InputError: an argument is out of range, or ``output`` is a file, holds other data or
            cannot be written.
    """
    if kind not in _SIZES:
        raise InputError(f"kind is {kind!r}; allowed are 'ct', 'mr' and 'cxr'.")
    usual, *allowed = _SIZES[kind]
    size = usual if size is None else size
    _check_whole("cases", cases, 1)
    _check_whole("seed", seed, 0)
    _check_whole("size", size, *allowed)

    folder = Path(str(output))
    held_out = 0 if kind == "cxr" else max(1, round(0.2 * cases))
    draw = {"ct": _ct_files, "mr": _mr_files, "cxr": _cxr_files}[kind]
    listed: dict[str, list[Any]] = {"training": [], "test": []}
    try:
        _claim(folder)
        for number in tqdm(range(cases + held_out), "phantom", unit="case", disable=not progress):
            test = number >= cases
            rng = np.random.default_rng([seed, int(test), number - cases * test])
            files = draw(rng, number, size, "Ts" if test else "Tr")
            for name, content in files.items():
                _write(folder / name, content)
            entry = {role: f"./{name}" for role, name in zip(_ROLES[kind], files, strict=True)}
            listed["test" if test else "training"].append(entry["image"] if test else entry)
        about = _ABOUT[kind] | {"numTraining": cases, "numTest": held_out} | listed
        _write(folder / "dataset.json", (json.dumps(about, indent=2) + "\n").encode())
        (folder / _UNFINISHED).unlink()
    except OSError as error:
        raise InputError(
            f"output {folder} cannot be written to ({error.strerror}); "
            "allowed is a folder in which you may create files."
        ) from error
    return folder


def _ct_files(rng: Generator, number: int, size: int, split: str) -> dict[str, bytes]:
    pixel, slices = rng.uniform(2.6, 3.2) * 112 / size, rng.uniform(3, 6) * (112 / size) ** 0.5
    spacing = (round(pixel, 3), round(pixel, 3), round(slices, 2))
    shape = (rng.uniform((330, 265, 185), (350, 285, 210)) / spacing).round().astype(int)
    codes = rng.choice(_ORIENTATIONS)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.uniform((-190, -160, -900), (-150, -120, -200)).round(1)
    case = ct_case(rng, tuple(shape.tolist()), spacing)
    name = f"liver_{number:03d}.nii.gz"
    return {
        f"images{split}/{name}": _nifti(case.hu, affine, codes),
        f"labels{split}/{name}": _nifti(case.label, affine, codes),
    }


def _mr_files(rng: Generator, number: int, size: int, split: str) -> dict[str, bytes]:
    spacing = (round(rng.uniform(0.98, 1.02) * 36 / size, 3),) * 3
    shape = np.ceil(rng.uniform((34, 48, 34), (40, 54, 40)) / spacing).astype(int)
    codes = rng.choice(_ORIENTATIONS)
    affine = np.diag([*spacing, 1.0])
    case = mr_case(rng, tuple(shape.tolist()), spacing)
    name = f"hippocampus_{number:03d}.nii.gz"
    return {
        f"images{split}/{name}": _nifti(case.image, affine, codes),
        f"labels{split}/{name}": _nifti(case.label, affine, codes),
    }


def _cxr_files(rng: Generator, number: int, size: int, split: str) -> dict[str, bytes]:
    shape = (rng.uniform((0.9, 0.88), (1.1, 1)) * size).round().astype(int)
    case = cxr_case(rng, tuple(shape.tolist()))
    name = f"MCUCXR_{number + 1:04d}_{int(case.opacities > 0)}.png"
    return {
        f"CXR_png/{name}": _png(case.image),
        f"ManualMask/leftMask/{name}": _png(255 * case.left.astype(np.uint8)),
        f"ManualMask/rightMask/{name}": _png(255 * case.right.astype(np.uint8)),
    }


def _nifti(array: Array, affine: Array, codes: str) -> bytes:
    """A ``.nii.gz`` of a RAS array, stored in the axis order and directions of ``codes``."""
    orientation = nib.orientations
    change = orientation.ornt_transform(
        orientation.io_orientation(affine), orientation.axcodes2ornt(codes)
    )
    image = nib.Nifti1Image(array, affine).as_reoriented(change)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _png(array: Array) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def _check_whole(name: str, value: Any, smallest: int, largest: float = math.inf) -> None:
    if type(value) is not int or not smallest <= value <= largest:
        allowed = f"from {smallest}" + (f" to {largest}" if largest < math.inf else "")
        raise InputError(f"{name} is {value!r}; allowed are whole numbers {allowed}.")


def _claim(folder: Path) -> None:
    """Make the folder, or clear it of an earlier phantom's files and of nothing else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; allowed is a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not _holds_phantom(folder):
        raise InputError(
            f"output {folder} holds other data; "
            "allowed is a new or empty folder, or one with an earlier phantom."
        )
    (folder / _UNFINISHED).touch()
    (folder / "dataset.json").unlink(missing_ok=True)
    for pattern in _FILES:
        parent, name = pattern.rsplit("/", 1)
        for file in [*folder.glob(pattern), *folder.glob(f"{parent}/.*.{name}")]:
            file.unlink()


def _holds_phantom(folder: Path) -> bool:
    if (folder / _UNFINISHED).exists():
        return True
    try:
        name = json.loads((folder / "dataset.json").read_bytes())["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return any(name == about["name"] for about in _ABOUT.values())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
