"""The file that a run writes of each image: one per image, and none of another's."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from monai.data import FolderLayoutBase
from monai.utils import ensure_tuple

from ..errors import InputError, check_switches, listed
from .formats import name_of
from .layouts.names import IMAGE_FOLDERS, without_first_channel

_logger = logging.getLogger(__name__)


def check_output_folder(output_dir: str | Path) -> None:
    """Create the folder that a run will write to.

    Raises:
        InputError: it cannot be created or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise InputError(
            f"The output folder {folder} cannot be written to ({error.strerror}); "
            "allowed is a folder in which you may create files."
        ) from error


class OutputLayout(FolderLayoutBase):
    """``output_dir/FOLDER/NAME_POSTFIX.ENDING`` of an image, for MONAI's ``SaveImage``.

    FOLDER is the image's own below `dataset_dir`, so that images of one name in two folders stay
    apart: that of ``A/CXR_png/1.png`` and of ``A/1.png`` is A. There is none for
    ``imagesTs/1.nii.gz``, nor for an image that is not below `dataset_dir`. NAME is that of the
    image of which the file is the first channel: of ``case_0000.nii.gz`` in a folder it is case.

    Args:
        output_dir: where the files go.
        dataset_dir: as for `image_files`, a folder or an image.
        postfix: what the files are.
        extension: their ending.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset_dir: str | Path,
        postfix: str = "seg",
        extension: str = ".nii.gz",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.dataset_dir = Path(os.path.abspath(dataset_dir))
        self.postfix = postfix
        self.extension = extension

    def filename(self, subject: str | Path = "subject", idx: int | None = None) -> Path:
        """The file of an image, or of its patch `idx`, in a folder that there is from now on."""
        path = self._path(subject, idx)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def plan(self, images: str | Sequence[str | Sequence[str]]) -> dict[str, Path]:
        """The file of each image, in an output_dir that exists.

        Args:
            images: one or several; of an image in several files, one per channel, the first counts.

        Raises:
            InputError: two images would have one file, an image's file is another image, a file
                cannot be there, as its name is too long, or what is there cannot be replaced: a
                link, a folder or a device.
        """
        files: list[str] = [ensure_tuple(image)[0] for image in ensure_tuple(images)]
        planned = {file: self._path(file) for file in files}
        fold = str.casefold if _ignores_case(self.output_dir) else str
        sources = defaultdict(list)
        for file, path in planned.items():
            sources[fold(os.path.realpath(path))].append(file)
        collisions = [
            f"{planned[several[0]]} of {' and of '.join(several)}"
            for several in sources.values()
            if len(several) > 1
        ]
        replaced = [file for file in planned if fold(os.path.realpath(file)) in sources]
        taken = [path for path in planned.values() if os.path.lexists(path) and not _is_file(path)]
        if collisions:
            raise InputError(
                f"{_count(collisions, 'file')} would be written more than once: "
                f"{listed(collisions)}; allowed are images of different names, or a dataset_dir "
                "whose folders tell them apart."
            )
        if replaced:
            raise InputError(
                f"{_count(replaced, 'image')} would be replaced by what is made of others: "
                f"{listed(replaced)}; allowed is another output folder than {self.output_dir}."
            )
        if impossible := [found for path in planned.values() if (found := self._problem(path))]:
            raise InputError(
                f"{listed(impossible)} cannot be written; allowed are images whose names leave "
                f"room for _{self.postfix}{self.extension}, and folders where no files are."
            )
        if taken:
            raise InputError(
                f"{listed(taken)} cannot be written: a link, a folder or a device is there, and "
                "only files are replaced."
            )
        return planned

    def todo(self, images: Sequence[str | Sequence[str]], overwrite: bool) -> list:
        """The images of which a file has to be written: all, or those whose file is not there.

        Args:
            images: see `plan`.
            overwrite: whether a file that is there is written anew; how many are not, the log says.

        Raises:
            InputError: overwrite is neither.
        """
        check_switches(overwrite=overwrite)
        missing = [
            image
            for image in images
            if overwrite or not os.path.exists(self._path(ensure_tuple(image)[0]))
        ]
        if done := len(images) - len(missing):
            _logger.info("%d of %d files are there already, and are kept.", done, len(images))
        return missing

    def _problem(self, path: Path) -> str | None:
        """Why there can be no such file, before its folder is there."""
        for there in (self.output_dir / path.name, path):
            try:
                os.lstat(there)
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"{path} ({error.strerror})"
        return None

    def _path(self, image: str | Path, patch: int | None = None) -> Path:
        path = Path(os.path.abspath(image))
        folder = Path()
        if path.parent.is_relative_to(self.dataset_dir):
            folder = path.parent.relative_to(self.dataset_dir)
        if folder.name in IMAGE_FOLDERS:
            folder = folder.parent
        name = name_of(path)
        if path != self.dataset_dir:  # of a folder it is the first channel, for image_files too
            name = without_first_channel(name)
        index = "" if patch is None else f"_{patch}"
        return self.output_dir / folder / f"{name}_{self.postfix}{index}{self.extension}"


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _ignores_case(folder: Path) -> bool:
    """Whether a.nii and A.nii are one file there."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="case") as file:
        name = Path(file.name)
        return name.with_name(name.name.upper()).exists()


def _count(things: list[str], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''}"
