"""Of label maps, what is connected."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils import get_largest_connected_component_mask
from scipy import ndimage
from torch import Tensor

from ..errors import InputError


class KeepLargestComponentsd(MapTransform):
    """Make background of all but the largest connected components of a label map.

    As MONAI's `KeepLargestConnectedComponentd`: voxels that share a face, an edge or a corner are
    connected.

    Args:
        keys: keys of the label maps, (1, ...), of whole numbers.
        of: what is looked at, as users give it by ``keep_largest_component``: True for all classes
            together, "per_class" for each by itself, or a list of those classes of which each by
            itself is looked at, the others staying as they are.
        num_components: how many of each are kept.

    Raises:
        InputError: of is none of these; or, at a call, there are several channels.
    """

    def __init__(self, keys: KeysCollection, of: Any = True, num_components: int = 1) -> None:
        super().__init__(keys)
        listed = isinstance(of, (list, tuple)) and all(type(n) is int and n > 0 for n in of)
        if not (of is True or of == "per_class" or (listed and len(of))):
            raise InputError(
                f"keep_largest_component is {of!r}; allowed are True, False, per_class, and a list "
                "of classes from 1, such as [1,2]."
            )
        self.of = of
        self.num_components = num_components

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        kept = dict(data)
        for key in self.key_iterator(kept):
            if len(kept[key]) != 1:
                raise InputError(
                    f"keep_largest_component is {self.of!r}, and {key} has {len(kept[key])} "
                    "channels; allowed is a label map, of one, or keep_largest_component False."
                )
            label = kept[key].clone()
            values = label[0].numpy(force=True)
            if self.of is True:
                self._keep(label[0], label[0] > 0)
            else:
                # Components are looked for where a class is, and nowhere else.
                for value, box in enumerate(ndimage.find_objects(values.astype("int32")), start=1):
                    if box is not None and (self.of == "per_class" or value in self.of):
                        self._keep(label[0][box], label[0][box] == value)
            kept[key] = label
        return kept

    def _keep(self, label: Tensor, mask: Tensor) -> None:
        largest = get_largest_connected_component_mask(
            mask.numpy(force=True), num_components=self.num_components
        )
        lost = mask & ~torch.from_numpy(largest).to(mask)
        label[lost] = 0
