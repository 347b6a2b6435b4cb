"""Which files are images: the one place that knows how their names end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple


class Format(NamedTuple):
    """A kind of image file.

    Attributes:
        name: what people call it.
        endings: how the names of its files end, in lower case, the longest first.
        spatial_dims: 2 for pictures, 3 for volumes.
        library: what reads it: nibabel, ITK (extra: formats) or Pillow.
    """

    name: str
    endings: tuple[str, ...]
    spatial_dims: Literal[2, 3]
    library: Literal["nibabel", "itk", "PIL"]


FORMATS = (
    Format("NIfTI", (".nii.gz", ".nii"), 3, "nibabel"),
    Format("NRRD", (".nrrd", ".nhdr"), 3, "itk"),
    Format("MetaImage", (".mha", ".mhd"), 3, "itk"),
    Format("PNG", (".png",), 2, "PIL"),
    Format("JPEG", (".jpg", ".jpeg"), 2, "PIL"),
    Format("TIFF", (".tif", ".tiff"), 2, "PIL"),
    Format("BMP", (".bmp",), 2, "PIL"),
)
# Names of DICOM files, which may also have no ending, and of what a series may come in.
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_ARCHIVE = ".zip"


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format that a file's name says it has, in whatever case; None for no image's."""
    name = os.fspath(path).lower()
    return next((found for found in FORMATS if name.endswith(found.endings)), None)


def is_lossy(path: str | os.PathLike[str]) -> bool:
    """Whether a file's format does not keep values as they are, and so no classes."""
    found = format_of(path)
    return found is not None and found.name == "JPEG"


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name says that it is an archive, in which DICOM may be."""
    return os.fspath(path).lower().endswith(_ARCHIVE)


def name_of(path: str | os.PathLike[str]) -> str:
    """The name of a file or folder without its folder and, of an image, without its ending."""
    return without_ending(Path(path).name)


def without_ending(name: str) -> str:
    """A name as a case has it, of which somebody may have written the file's."""
    for ending in (*(e for f in FORMATS for e in f.endings), *DICOM_ENDINGS, _ARCHIVE):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def allowed_endings(spatial_dims: int | None = None) -> str:
    """The endings of pictures, volumes or both, for a sentence."""
    endings = [e for f in FORMATS if spatial_dims in (None, f.spatial_dims) for e in f.endings]
    return f"{', '.join(endings[:-1])} and {endings[-1]}"
