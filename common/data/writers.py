"""Image writers that never leave half a file behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import NibabelWriter, PILWriter
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, convert_to_tensor
from numpy.typing import NDArray

from .. import scratch
from ..errors import InputError
from ..files import replacing
from .geometry import apart

_logger = logging.getLogger(__name__)


# What a NIfTI header says of where its voxels are.
_PLACE = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer; a file appears under its name only when it is complete.

    A mask on the grid of a NIfTI image has its qform, sform, their codes and the units, so that
    programs that prefer either of the two show both at one place. On any other grid both forms are
    set from the affine.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place: nib.Nifti1Header | None = None

    def set_metadata(
        self, meta_dict: Mapping | None, resample: bool = True, **options: Any
    ) -> None:
        super().set_metadata(meta_dict, resample, **options)
        self.place = _place(meta_dict or {}, self.affine, np.shape(self.data_obj)[:3])

    def write(self, filename: str | PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        with _complete(filename) as partial:
            if self.place is None:
                super().write(partial, **obj_kwargs)
            else:
                mask = self.create_backend_obj(
                    self.data_obj,
                    affine=self.place.get_best_affine(),
                    dtype=self.output_dtype,
                    header=self.place,
                    **obj_kwargs,
                )
                mask.set_data_dtype(mask.dataobj.dtype)  # the header's would be used
                nib.save(mask, partial)
        if verbose:
            _logger.info("The mask is in %s", filename)


class ProbabilityWriter(AtomicNibabelWriter):
    """Writes probabilities, whole numbers of 255ths, as a NIfTI file of four axes, classes last.

    Its scl_slope is 1/255, so that programs show 0 to 1. It is written part by part: it need not
    fit into the memory.
    """

    def write(self, filename: str | PathLike, verbose: bool = False, **kwargs: Any) -> None:
        values = convert_to_tensor(self.data_obj, dtype=torch.uint8)
        if values.ndim == 3:  # of an image without depth
            values = values[:, :, None]
        header = nib.Nifti1Header()
        if self.place is None:
            header.set_sform(to_affine_nd(3, self.affine), code="aligned")
            header.set_qform(to_affine_nd(3, self.affine), code="aligned")
        else:
            header = self.place.copy()
        header.set_data_shape(values.shape)
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1 / 255, 0)
        header["magic"], header["vox_offset"] = b"n+1", 352
        with _complete(filename) as partial, nib.openers.Opener(str(partial), "wb") as file:
            file.write(header.binaryblock + bytes(4))
            for probabilities in values.unbind(-1):
                for section in probabilities.unbind(-1):
                    file.write(section.numpy(force=True).tobytes(order="F"))
                scratch.release(values)
        if verbose:
            _logger.info("The probabilities are in %s", filename)


class AtomicPILWriter(PILWriter):
    """MONAI's PNG writer for maps of classes; a file appears only when it is complete.

    The classes are written as grey levels that a person can tell apart, spread evenly from 0 to
    255 and rounded to whole ones: 0 and 255 for two classes, 0, 128 and 255 for three.

    Args:
        num_classes: 2 to 256, the background among them.
    """

    data_obj: np.ndarray

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        if not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes is {num_classes}; allowed are 2 to 256.")
        super().__init__(**kwargs)
        self.levels = grey_levels(num_classes)

    def write(self, filename: str | PathLike, verbose: bool = False, **kwargs: object) -> None:
        self.data_obj = self.levels[np.asarray(self.data_obj, np.int64)]
        with _complete(filename) as partial:
            super().write(partial, **kwargs)
        if verbose:
            _logger.info("The mask is in %s", filename)


def grey_levels(num_classes: int) -> NDArray[np.uint8]:
    """What classes, of at most 256, are in a picture: spread evenly from 0 to 255."""
    return np.linspace(0, 255, num_classes).round().astype(np.uint8)


def _place(meta: Mapping[Any, Any], affine: Any, size: tuple[int, ...]) -> nib.Nifti1Header | None:
    """A header that places voxels as the image's does; None if it has none for this affine."""
    if affine is None or not all(name in meta for name in (*_PLACE, MetaKeys.ORIGINAL_PIXDIM)):
        return None
    header = nib.Nifti1Header()
    for name in _PLACE:
        header[name] = np.asarray(meta[name])
    # The first one is the qform's handedness.
    header["pixdim"][:4] = np.asarray(meta[MetaKeys.ORIGINAL_PIXDIM])[:4]
    header.set_data_shape(size)  # without codes the middle of the image is the origin
    if apart(header.get_best_affine(), to_affine_nd(3, affine), size) > 0.01:
        return None
    return header


@contextmanager
def _complete(filename: str | PathLike) -> Iterator[Path]:
    """`replacing`, whose errors are the user's to mend."""
    try:
        with replacing(filename) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"The mask {filename} cannot be written ({error}).") from error
