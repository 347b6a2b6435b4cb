"""Which layout a folder has, and what is in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from monai.utils import ensure_tuple

from ...errors import InputError, listed
from ...files import read_json
from ..dicom import is_dicom
from ..formats import allowed_endings
from . import brats, decathlon, folders, isic, lits, nnunet, radiographs
from . import cases_file as listing
from .names import IMAGES, beside_images, images_of
from .pairing import unlabelled_images
from .types import Case, DataSet, Image

_logger = logging.getLogger(__name__)

_FOLDERS = (
    *(folders.read_pairs, folders.read_parts, folders.read_pooled),
    *(lits.read, brats.read, isic.read),
)


def find_cases(dataset_dir: str | Path, cases_file: str | Path | None = None) -> DataSet:
    """The cases of a data set, whose layout is told by what is there; the first of these counts:

    - `cases_file`, a JSON or CSV list of images and labels;
    - chest radiographs laid out like the Montgomery and Shenzhen sets: ``CXR_png`` and masks;
    - ``dataset.json`` that lists "training": the Medical Segmentation Decathlon, nnU-Net v1, MONAI;
    - ``dataset.json`` that lists none, and ``imagesTr``: nnU-Net's raw data sets;
    - folders, of which only one may be there: ``imagesTr`` and ``labelsTr``, images and labels or
      masks, image and label or mask; ``train_images``, ``train_masks``, ``valid_images``, ..., or
      ``train/images``, ``train/masks``, ..., or several folders of such, in which volumes of one
      name are one patient's; LiTS's ``volume-N`` and ``segmentation-N``; BraTS's
      folder per case; ISIC's folders of photographs and of masks.

    Images are of any of `formats.FORMATS`, or DICOM series, and may be a file per channel:
    ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, .... Labels have the names of their images, or with
    _mask, _seg, _segmentation or _label at their ends.

    Args:
        dataset_dir: the folder; of no account where there is a `cases_file`.
        cases_file: its paths are relative to the folder that it is in.

    Raises:
        InputError: there is no such layout or more than one, a file is missing or of another's
            name, an image has no label, or a channel is missing.
    """
    if cases_file is not None:
        return listing.read(Path(cases_file))
    root = existing_folder(dataset_dir)
    with _explained(root):
        found = radiographs.read(root) or _described(root)
        if found is not None:
            return found
        matches = [data for read in _FOLDERS if (data := read(root)) is not None]
    if len(matches) > 1:
        raise InputError(
            f"{root} has the layouts of {' and of '.join(data.layout for data in matches)}; "
            "allowed is one of them, or a cases_file that says which files count."
        )
    if not matches:
        raise InputError(
            f"{root} holds no labelled cases in a layout that is known: needed are imagesTr with "
            "images and labelsTr with label maps of the same names, dataset.json with a list, "
            "folders as of LiTS, BraTS, ISIC or nnU-Net, CXR_png with radiographs and their masks, "
            "or a cases_file."
        )
    return matches[0]


def labelled_cases(dataset_dir: str | Path, cases_file: str | Path | None = None) -> list[Case]:
    """Every labelled case of a data set, see `find_cases`; what is odd is said once in the log.

    Raises:
        InputError: as `find_cases`, or there is no labelled case.
    """
    return require_cases(find_cases(dataset_dir, cases_file), cases_file or dataset_dir).cases


def image_files(dataset_dir: str | Path, spatial_dims: int = 3) -> list[Image]:
    """The images to segment, one file each, or a list of files, one per channel.

    A file is one image, whatever its name, and so is a DICOM series, a folder or a zip. Of a folder
    the first of these count that are there:

    - all radiographs (see `find_cases`);
    - ISIC's photographs, of one part's folder or for test;
    - the files in ``imagesTs``, or those of the part called test;
    - what its ``dataset.json`` lists under "test", with labels or without;
    - its own files and the DICOM series in it, where one of them is not called as LiTS's are;
    - LiTS's test volumes or else all, or BraTS's cases without a segmentation or else all.

    ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... are one image's channels, as in training, unless
    no number there is 0000.

    Args:
        dataset_dir: the file or folder.
        spatial_dims: 2 for pictures, 3 for volumes.

    Raises:
        InputError: the path does not exist or holds no image, two files are of one name, or a
            channel is missing.
    """
    path = Path(dataset_dir)
    if os.path.isfile(path):
        return [str(path)]
    root = existing_folder(path)
    with _explained(root):
        for images in _IMAGES:
            if found := images(root, spatial_dims):
                say_once(_left_out(root, found))
                return found
    elsewhere = [
        str(folder) for folder in folders.of_images(root) if images_of(folder, spatial_dims)
    ]
    hint = f"; images are in {listed(elsewhere)}" if elsewhere else ""
    raise InputError(
        f"{root} holds no image; allowed are files that end in {allowed_endings(spatial_dims)}, "
        f"and DICOM{hint}."
    )


def existing_folder(path: str | Path) -> Path:
    """The folder of a data set.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # which, unlike Path's, takes a name too long for one of none
        raise InputError(
            f"There is no folder {folder}; needed is one with imagesTr and labelsTr, "
            "with CXR_png and masks, or with the images to segment."
        )
    return folder


def require_cases(data: DataSet, where: str | Path) -> DataSet:
    """The data set, whose notes are said now.

    Raises:
        InputError: it has no labelled case.
    """
    say_once(data.notes)
    if not data.cases:
        raise InputError(f"{where} holds no case; needed is at least one image with a label.")
    return data


def say_once(notes: Iterable[str]) -> None:
    """Training asks for the same cases twice, for its own part and for validation's."""
    for note in notes:
        _warn(note)


@cache
def _warn(note: str) -> None:
    _logger.warning("%s", note)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """What may not be looked into, as a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or root} cannot be looked into ({error.strerror}); allowed are files "
            "and folders that you may read."
        ) from error


def _left_out(root: Path, images: Iterable[Image]) -> list[str]:
    """A note on what else the folder has, but for what is beside images everywhere."""
    files = {Path(file) for image in images for file in ensure_tuple(image)}
    if root in files:
        return []
    used = {root / file.relative_to(root).parts[0] for file in files if file.is_relative_to(root)}
    others = [
        path.name
        for path in sorted(root.iterdir())
        if path not in used and not path.name.startswith(".") and not beside_images(path)
    ]
    return [f"{root} has what is not segmented: {listed(others)}."] if others else []


def _described(root: Path) -> DataSet | None:
    """The data set of a dataset.json; None where there is none, or it says nothing of cases."""
    path = root / "dataset.json"
    if not path.is_file():
        return None
    stated = read_json(path)
    if "training" in stated:
        return decathlon.read(path, stated)
    if "dataset" in stated or (root / IMAGES).is_dir():
        return nnunet.read(path, stated)
    return None


def _own_images(root: Path, spatial_dims: int) -> list[Image]:
    found = unlabelled_images(root, spatial_dims)
    if not found and spatial_dims == 3:
        return [str(root)] if is_dicom(root) else []
    return found


def _images_not_of_lits(root: Path, spatial_dims: int) -> list[Image]:
    """The folder's own, all of them, unless all are LiTS's: one such name may be anybody's."""
    found = _own_images(root, spatial_dims)
    of_lits = all(lits.is_named_so(Path(file)) for image in found for file in ensure_tuple(image))
    return [] if of_lits else found


def _listed_images(root: Path, spatial_dims: int) -> list[Image]:
    path = root / "dataset.json"
    return decathlon.test_images(path, read_json(path)) if path.is_file() else []


_IMAGES = (
    radiographs.images,
    isic.images,
    folders.test_images,
    _listed_images,
    _images_not_of_lits,
    lits.images,
    brats.images,
    _own_images,
)
