"""Images from files that a user chose."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImaged
from torch import Tensor

from ..data.readers import FormatReader
from ..errors import InputError, first_line
from .naming import file_names

# A reader of MONAI's that `FormatReader` is asked before: what it lacks on a CPU is nobody's fault.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class LoadCheckedImaged(LoadImaged):
    """MONAI's `LoadImaged`, for files that a user chose, of all formats of `FormatReader`.

    An image that is in memory stays as it is: MONAI Deploy reads images itself, and leaves out the
    transforms that it knows as loaders by their names.

    Args:
        keys: keys of the images: a file, a DICOM folder or zip file, or a list, the channels.
        reader: as for MONAI's, in place of `FormatReader`.
        modality: of the DICOM series that are images here, such as "CT"; None takes any.
        series_uid: the DICOM series to take where there are several; None where there is one.
        kwargs: as for MONAI's.

    Raises:
        InputError: a file is missing, cannot be read to its end as an image, or is one that
            `FormatReader` refuses.
    """

    _grey = False
    _colour = False
    _label_reader: FormatReader | None = None

    def __init__(
        self,
        keys: KeysCollection,
        reader: Any = None,
        modality: str | Sequence[str] | None = None,
        series_uid: str | None = None,
        **kwargs: Any,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*nvImageCodec")
            super().__init__(keys, reader, image_only=True, **kwargs)
        if reader is None:  # the last one registered is asked first
            self.register(
                FormatReader(self._grey, self._colour, modality=modality, series_uid=series_uid)
            )

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if isinstance(data[key], Tensor):
                continue
            try:
                chosen = self._label_reader if key == "label" and reader is None else reader
                image = self._loader(data[key], chosen)
            except InputError as error:
                raise InputError(f"The {key} {error}") from error
            except Exception as error:
                raise InputError(
                    f"The {key} {file_names(data[key])} cannot be read ({first_line(error)}); "
                    "allowed are complete image files, such as NIfTI or PNG."
                ) from error
            # MONAI Label has the reader give the metadata beside the image, where they are as well.
            loaded[key] = image[0] if isinstance(image, tuple) else image
        return loaded


class LoadRadiographd(LoadCheckedImaged):
    """`LoadCheckedImaged` that makes of each PNG, JPEG, TIFF or BMP file one channel of grey.

    A volume of one slice is a picture too.
    Colours become their luminance and transparency is left out; 16-bit greys stay 16-bit greys. Of
    a label's palette the colours' numbers count.
    As for every reader of MONAI the first spatial axis is the horizontal one.
    """

    _grey = True
    _label_reader = FormatReader(grey=True, palette=True)


class LoadPhotographd(LoadCheckedImaged):
    """`LoadCheckedImaged` that makes of each PNG, JPEG, TIFF or BMP file red, green and blue.

    Grey photographs have three times the same, and transparency is left out; those of more than 8
    bits are refused. A label is as `LoadRadiographd` has it.
    As for every reader of MONAI the first spatial axis is the horizontal one.
    """

    _colour = True
    _label_reader = LoadRadiographd._label_reader
