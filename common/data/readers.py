"""Images from files: the one place that chooses what reads a format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.data import ITKReader, NibabelReader, PILReader
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.openers import ImageOpener
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, by_axis, how_to_install
from .dicom import is_dicom, read_dicom
from .formats import Format, allowed_endings, format_of
from .geometry import SAME_PLACE, apart, described, grid_problem

_NOT_IN_PYTHON = ("char", "long", "long_long")  # of ITK's types: int8 and int64


class _Image(NamedTuple):
    file: str
    values: NDArray[Any]
    meta: dict[Any, Any]

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.meta[MetaKeys.SPATIAL_SHAPE])


class FormatReader(ImageReader):
    """MONAI's readers of NIfTI (nibabel), NRRD and MetaImage (ITK) and pictures (Pillow), and
    `read_dicom`, each for the files whose names or contents say so.

    Axes are the file's, the horizontal one first; affines are to RAS, mm, in all formats. Several
    files are the channels of one image.

    Args:
        grey: make one channel of grey of colour pictures, and a picture of a volume of one slice.
        colour: make three channels, red, green and blue, of every picture; grey ones have three
            times the same.
        palette: of a picture of at most 256 colours take their numbers, as labels have them.
        modality: as for `read_dicom`.
        series_uid: as for `read_dicom`.
    """

    def __init__(
        self,
        grey: bool = False,
        colour: bool = False,
        palette: bool = False,
        modality: str | Sequence[str] | None = None,
        series_uid: str | None = None,
    ) -> None:
        self.grey = grey
        self.colour = colour
        self.palette = palette
        self.modality = modality
        self.series_uid = series_uid

    def verify_suffix(self, filename: object) -> bool:
        return True  # of any other file a sentence says which are allowed

    def read(self, data: Any, **kwargs: Any) -> list[_Image]:
        """The images of one or several files.

        Raises:
            InputError: an ending that no format has, or whose library is missing; values that are
                complex numbers or colours of a volume; where colours are asked for, a picture of
                more than 8 bits; an affine that no grid of voxels has; or as `read_dicom`.
        """
        return [self._read(os.fspath(file)) for file in ensure_tuple(data)]

    def get_data(self, img: list[_Image]) -> tuple[NDArray[Any], dict[Any, Any]]:
        """Values and metadata, of which those of the first channel count.

        Raises:
            InputError: channels of other sizes than the first one's, or at other places.
        """
        first, *others = img
        for image in others:
            _check_channel(image, first)
        if not others:
            return first.values, first.meta
        values = [image.values for image in img]
        if np.isnan(float(first.meta[MetaKeys.ORIGINAL_CHANNEL_DIM])):
            meta = first.meta | {MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
            return np.stack(values), meta
        return np.concatenate(values, -1), first.meta

    def _read(self, file: str) -> _Image:
        found = format_of(file)
        if found is not None:
            try:
                reader = self._reader(file, found)
                values, meta = reader.get_data(reader.read(file))
            except RuntimeError as error:
                if found.library != "itk":
                    raise
                raise ValueError(_reason(error)) from error
        elif is_dicom(file):
            values, affine = read_dicom(file, self.modality, self.series_uid)
            meta = _dicom_meta(values, affine)
        elif not Path(file).exists():
            raise FileNotFoundError(f"there is no {file}")
        else:
            raise InputError(
                f"{file} is of no format that is known; allowed are files that end in "
                f"{allowed_endings()}, and DICOM as a file, a folder or a zip file."
            )
        _check_image(file, values, meta)
        if self.grey and tuple(meta[MetaKeys.SPATIAL_SHAPE])[2:] == (1,):
            values, meta = values[:, :, 0], meta | {MetaKeys.SPATIAL_SHAPE: values.shape[:2]}
        return _Image(file, values, meta)

    def _reader(self, file: str, found: Format) -> ImageReader:
        if found.library == "nibabel":
            return _NiftiReader()
        if found.library == "PIL":
            return PILReader(converter=_one_page(self._converted))
        try:
            import itk
        except ImportError as error:
            raise InputError(
                f"{file} is {found.name}, and itk, which reads it, is not installed: "
                f"{how_to_install('formats')}."
            ) from error
        # ITK chooses by the ending, of which it knows some in lower case only.
        io = {"NRRD": itk.NrrdImageIO, "MetaImage": itk.MetaImageIO}[found.name].New()
        io.SetFileName(file)
        io.ReadImageInformation()
        component = io.GetComponentTypeAsString(io.GetComponentType())
        if io.GetNumberOfComponents() == 1 and component in _NOT_IN_PYTHON:
            return ITKReader(imageio=io, pixel_type=itk.D)
        return ITKReader(imageio=io)

    def _converted(self, image: Any) -> Any:
        if image.mode == "P" and self.palette:
            return Image.fromarray(np.asarray(image))
        if self.colour:
            return _colour(image)
        return _grey(image) if self.grey else image


class _NiftiReader(NibabelReader):
    """MONAI's, with the affine that nibabel and the standard take: sform, else qform.

    MONAI replaces an sform whose spacing differs from pixdim's by 1e-5 of it with the qform, even
    one whose code says that there is none: axes are flipped without a word. And nibabel's `load`
    finds no file whose ending mixes cases.
    """

    def read(self, data: Any, **kwargs: Any) -> Nifti1Image:
        self.filenames = (data,)
        with ImageOpener(data) as file:
            start = file.read(Nifti2Header.sizeof_hdr)
        kind = Nifti2Image if Nifti2Header.may_contain_header(start) else Nifti1Image
        return kind.from_file_map({"image": FileHolder(filename=data)})


def _reason(error: RuntimeError) -> str:
    """What is wrong: the last line of ITK's, of which those before say where in its sources."""
    lines = [line for line in str(error).splitlines() if line not in ("", "Reason: Success")]
    return re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", lines[-1])


def _grey(image: Any) -> Any:
    """A PIL image of one channel, of the bit depth that PIL gives it."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return image
    return image.convert("L")


def _colour(image: Any) -> Any:
    """A PIL image of red, green and blue, without its transparency."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # of which PIL would cut off most
        raise InputError(
            f"{image.filename} has grey values of more than 8 bits; allowed are photographs of 8 "
            "bits, in colour or grey."
        )
    return image.convert("RGB")


def _one_page(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(image: Any) -> Any:
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{image.filename} has {pages} pages; allowed is one.")
        return converter(image)

    return convert


def _dicom_meta(values: NDArray[Any], affine: NDArray[np.float64] | None) -> dict[Any, Any]:
    meta: dict[Any, Any] = {
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM: np.nan,
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
    if affine is not None:
        meta |= {MetaKeys.AFFINE: affine, MetaKeys.ORIGINAL_AFFINE: affine.copy()}
    return meta


def _check_image(file: str, values: NDArray[Any], meta: dict[Any, Any]) -> None:
    if values.dtype.fields is not None:
        raise InputError(
            f"{file} has voxels of {', '.join(values.dtype.fields)}; allowed is one number each."
        )
    if np.iscomplexobj(values):
        raise InputError(
            f"{file} has complex values ({values.dtype}); allowed are real ones, such as their "
            "magnitude."
        )
    affine = meta.get(MetaKeys.AFFINE)
    if affine is not None and (problem := grid_problem(affine)):
        raise InputError(f"{file} {problem}")


def _check_channel(image: _Image, first: _Image) -> None:
    if image.size != first.size:
        one, other = (by_axis(i.size) for i in (image, first))
        raise InputError(
            f"{image.file} has the size {one}, {first.file} {other}; allowed are channels of one "
            "size."
        )
    affine, expected = (i.meta.get(MetaKeys.AFFINE) for i in (image, first))
    if affine is None or expected is None:
        return
    if not (distance := apart(expected, affine, first.size)) <= SAME_PLACE:
        raise InputError(
            f"{image.file} has the affine {described(affine)}, {first.file} "
            f"{described(expected)}, which are up to {distance:.3g} voxels apart; allowed are "
            f"channels of one place, within {SAME_PLACE:g} voxels."
        )
