"""Images from files that a user chose."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import PILReader
from monai.transforms import LoadImaged
from torch import Tensor

from ..errors import InputError, first_line
from .naming import file_names


class LoadCheckedImaged(LoadImaged):
    """MONAI's `LoadImaged`, for files that a user chose.

    An image that is in memory stays as it is: MONAI Deploy reads images itself, and leaves out the
    transforms that it knows as loaders by their names.

    Raises:
        InputError: a file is missing, or cannot be read to its end as an image.
    """

    def __init__(self, keys: KeysCollection, reader: Any = None, **kwargs: Any) -> None:
        super().__init__(keys, reader, image_only=True, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if isinstance(data[key], Tensor):
                continue
            try:
                image = self._loader(data[key], reader)
            except Exception as error:
                raise InputError(
                    f"The {key} {file_names(data[key])} cannot be read ({first_line(error)}); "
                    "allowed are complete image files, such as NIfTI or PNG."
                ) from error
            # MONAI Label has the reader give the metadata beside the image, where they are as well.
            loaded[key] = image[0] if isinstance(image, tuple) else image
        return loaded


class LoadRadiographd(LoadCheckedImaged):
    """`LoadCheckedImaged` that makes of each PNG, JPEG or BMP file one channel of grey.

    Colours become their luminance and transparency is left out; 16-bit greys stay 16-bit greys.
    As for every reader of MONAI the first spatial axis is the horizontal one.
    """

    def __init__(self, keys: KeysCollection, **kwargs: Any) -> None:
        super().__init__(keys, **kwargs)
        self.register(PILReader(converter=_grey))  # the last one registered is asked first


def _grey(image: Any) -> Any:
    """A PIL image of one channel, of the bit depth that PIL gives it."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return image
    return image.convert("L")
