"""3D-IRCADb-01 (https://www.ircad.fr/research/data-sets), from DICOM to NIfTI.

Each patient is a folder ``3Dircadb1.N`` with a CT's slices in ``PATIENT_DICOM`` and, in
``MASKS_DICOM``, a folder of slices for each structure, 0 and 255. The masks lie on the CT's grid,
but it is the CT that says where: a mask's slice belongs to the CT's slice of the same file name,
or else of the same instance number.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import InputError, first_line, how_to_install

_TUMOUR = re.compile(r"livertumou?rs?\d*", re.IGNORECASE)  # others' are not of the liver
_ABOUT = {
    "name": "3D-IRCADb-01",
    "description": "Liver and liver tumours in CT",
    "reference": "https://www.ircad.fr/research/data-sets",
    "tensorImageSize": "3D",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "tumour"},
}


class IrcadbCase(NamedTuple):
    """What was written of one patient."""

    name: str
    slices: int
    structures: tuple[str, ...]
    """The masks that the label is made of; the first one is the liver's."""


class _Slice(NamedTuple):
    file: Path
    header: Any

    @property
    def name(self) -> str:
        return re.sub(r"\.dcm$", "", self.file.name, flags=re.IGNORECASE)

    @property
    def number(self) -> object:
        return self.header.get("InstanceNumber")

    @property
    def orientation(self) -> NDArray[np.float64]:
        """Along a row and along a column, (2, 3); to the left, posterior and superior."""
        return np.array(self.header.ImageOrientationPatient, float).reshape(2, 3)

    @property
    def position(self) -> NDArray[np.float64]:
        """The first voxel's centre, mm."""
        return np.array(self.header.ImagePositionPatient, float)

    def pixels(self) -> NDArray[Any]:
        """(columns, rows), as stored."""
        try:
            pixels = self.header.pixel_array
        except Exception as error:
            raise InputError(
                f"The slice {self.file} cannot be decoded ({first_line(error)}); needed are "
                "complete files and, for compressed ones, a decoder: pip install pylibjpeg "
                "pylibjpeg-openjpeg."
            ) from error
        if pixels.ndim != 2:
            raise InputError(f"{self.file} holds {pixels.ndim}D pixels; allowed is one grey slice.")
        return pixels.T


def write_ircadb(source: str | Path, output: str | Path, progress: bool = True) -> list[IrcadbCase]:
    """Convert the patients to a data set in the layout of the Medical Segmentation Decathlon.

    ``imagesTr`` gets the CTs (int16, HU), ``labelsTr`` their labels (uint8: 1 liver, 2 tumour, a
    voxel of both being tumour), ``dataset.json`` lists them. Tumours are the structures
    ``livertumor``, ``livertumors``, ``livertumor01``, ...: neither cysts nor other organs' tumours.

    Args:
        source: the folder that holds the patients' folders, or one of these.
        output: a new or empty folder; it is filled when all patients are converted.
        progress: show a bar on standard error.

    Raises:
        InputError: pydicom is missing; a folder or the liver's mask is missing, or not unzipped;
            slices are missing, of several series, or do not fit together; `output` cannot be used.
    """
    root, folder = Path(str(source)), Path(str(output))
    patients = _patients(root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output {folder} exists already; allowed is a new or empty folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
            written = _write(patients, Path(partial) / folder.name, progress)
            if folder.exists():
                folder.rmdir()
            os.replace(Path(partial) / folder.name, folder)
    except OSError as error:
        raise InputError(
            f"output {folder} cannot be written to ({error.strerror}); "
            "allowed is a folder in which you may create files."
        ) from error
    return written


def _write(patients: dict[str, Path], folder: Path, progress: bool) -> list[IrcadbCase]:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    written, listed = [], []
    bar = tqdm(patients.items(), "ircadb", unit="patient", disable=not progress)
    for name, patient in bar:
        bar.set_postfix_str(patient.name)
        hu, label, affine, structures = _converted(patient)
        files = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for volume, file in zip((hu, label), files.values(), strict=True):
            image = nib.Nifti1Image(volume, affine)
            image.set_qform(affine, 1)
            image.set_sform(affine, 1)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / file)
        listed.append(files)
        written.append(IrcadbCase(name, hu.shape[2], structures))
    about = _ABOUT | {"numTraining": len(listed), "numTest": 0, "training": listed, "test": []}
    (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return written


def _patients(root: Path) -> dict[str, Path]:
    """The patients' folders, by the names of their cases."""
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root}; needed is one with 3Dircadb1.1, 3Dircadb1.2, ..."
        )
    found = [root] if _is_patient(root) else []
    for pattern in ("*", "*/*"):
        found = found or [folder for folder in root.glob(pattern) if _is_patient(folder)]
    named: dict[str, Path] = {}
    for folder in sorted(found):
        match = re.fullmatch(r"(.*)\.(\d+)", folder.resolve().name)
        name = f"{match[1]}_{int(match[2]):02d}" if match else folder.resolve().name
        if name in named:
            raise InputError(f"{named[name]} and {folder} are both {name}; allowed is one of them.")
        named[name] = folder
    if not named:
        raise InputError(
            f"{root} holds no patient; needed are folders such as 3Dircadb1.1 with PATIENT_DICOM "
            "and MASKS_DICOM in them."
        )
    for folder in named.values():
        _structures(folder)  # what is missing is said before any work is spent
    return dict(sorted(named.items()))


def _is_patient(folder: Path) -> bool:
    return any((folder / f"PATIENT_DICOM{ending}").exists() for ending in ("", ".zip"))


def _unzipped(patient: Path, name: str) -> Path:
    folder = patient / name
    if not folder.is_dir():
        archive = patient / f"{name}.zip"
        if archive.exists():
            raise InputError(f"{archive} is still packed; unzip it to {folder} first.")
        raise InputError(
            f"{patient} has no folder {name}; needed are PATIENT_DICOM and MASKS_DICOM."
        )
    return folder / name if (folder / name).is_dir() else folder  # some unzip to a folder in it


def _structures(patient: Path) -> tuple[Path, list[Path]]:
    """The folders of the CT and of the masks, the liver's first."""
    slices, masks = (_unzipped(patient, name) for name in ("PATIENT_DICOM", "MASKS_DICOM"))
    folders = sorted(folder for folder in masks.iterdir() if folder.is_dir())
    liver = [folder for folder in folders if folder.name.lower() == "liver"]
    if not liver:
        names = ", ".join(folder.name for folder in folders) or "nothing"
        raise InputError(
            f"{masks} has no mask of the liver, but {names}; needed is a folder liver."
        )
    return slices, liver + [folder for folder in folders if _TUMOUR.fullmatch(folder.name)]


def _converted(
    patient: Path,
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
    """HU, label, affine (RAS, mm) and the names of the masks."""
    folder, masks = _structures(patient)
    slices = _read(folder)
    affine = _sort(folder, slices)
    hu = np.stack([_hu(item) for item in slices], -1)
    label = np.zeros(hu.shape, np.uint8)
    for value, mask in zip((1, *(2 for _ in masks[1:])), masks, strict=True):
        label[_mask(mask, folder, slices, hu.shape)] = value
    return hu, label, affine, tuple(mask.name for mask in masks)


def _read(folder: Path) -> list[_Slice]:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            "Reading DICOM needs pydicom, which is not installed: "
            f"{how_to_install('dicom')}, or pip install pydicom pylibjpeg pylibjpeg-openjpeg."
        ) from error
    slices = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            try:
                slices.append(_Slice(file, pydicom.dcmread(file)))
            except (pydicom.errors.InvalidDicomError, OSError, EOFError) as error:
                raise InputError(
                    f"{file} cannot be read as DICOM; allowed are only slices in {folder}."
                ) from error
    if not slices:
        raise InputError(f"{folder} holds no slice; needed are DICOM files.")
    return slices


def _sort(folder: Path, slices: list[_Slice]) -> NDArray[np.float64]:
    """Put a CT's slices in order along their normal; return the affine of the volume (RAS)."""
    for item in slices:
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if not item.header.get(tag):
                raise InputError(f"The slice {item.file} has no {tag}, which a CT's slices need.")
    alike: dict[str, Callable[[_Slice], object]] = {
        "series": lambda item: item.header.get("SeriesInstanceUID"),
        "sizes": lambda item: (item.header.Columns, item.header.Rows),
        "pixel spacings": lambda item: tuple(map(float, item.header.PixelSpacing)),
        "orientations": lambda item: tuple(item.orientation.round(4).ravel().tolist()),
    }
    for name, value in alike.items():
        if (count := len({value(item) for item in slices})) > 1:
            raise InputError(f"{folder} holds slices of {count} {name}; allowed is one.")
    if len(slices) < 2:
        raise InputError(f"{folder} holds 1 slice; allowed are 2 and more, which make a volume.")
    along_row, along_column = slices[0].orientation
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda item: float(normal @ item.position))
    _check_steps(folder, slices, np.diff([normal @ item.position for item in slices]))
    down, across = map(float, slices[0].header.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = along_row * across
    affine[:3, 1] = along_column * down
    affine[:3, 2] = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    affine[:3, 3] = slices[0].position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes are LPS


def _check_steps(folder: Path, slices: Sequence[_Slice], steps: NDArray[np.float64]) -> None:
    usual = float(np.median(steps))
    odd = int(np.abs(steps - usual).argmax())
    first, second = slices[odd].file.name, slices[odd + 1].file.name
    if steps.min() < 1e-3:
        at = int(steps.argmin())
        first, second = slices[at].file.name, slices[at + 1].file.name
        raise InputError(f"{folder} holds {first} and {second} at the same place; allowed is one.")
    if abs(steps[odd] - usual) > 0.1 * usual:
        raise InputError(
            f"{folder} lacks slices or has too many: {first} and {second} are {steps[odd]:g} mm "
            f"apart, others {usual:g} mm; allowed are even distances."
        )


def _hu(item: _Slice) -> NDArray[np.int16]:
    slope, intercept = (
        float(item.header.get(tag, usual))
        for tag, usual in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    limits = np.iinfo(np.int16)
    hu = item.pixels() * slope + intercept
    return np.rint(hu).clip(limits.min, limits.max).astype(np.int16)


def _mask(
    folder: Path, ct: Path, slices: Sequence[_Slice], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    masks = _read(folder)
    for key in (lambda item: item.name, lambda item: item.number):
        of = {key(mask): mask for mask in masks}
        if len(of) == len(masks) == len(slices) and set(of) == {key(item) for item in slices}:
            break
    else:
        raise InputError(
            f"{folder} holds {len(masks)} slices, {ct} {len(slices)}, which do not pair by name or "
            "by instance number; needed is one for each."
        )
    for mask in masks:
        if (mask.header.Columns, mask.header.Rows) != shape[:2]:
            raise InputError(
                f"The mask {mask.file} has {mask.header.Columns} x {mask.header.Rows} pixels; "
                f"allowed are those of its CT, {shape[0]} x {shape[1]}."
            )
    return np.stack([of[key(item)].pixels() > 0 for item in slices], -1)
