"""Connected components of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of a mask whose voxels share faces; of an empty one, nothing."""
    parts, number = ndimage.label(mask)
    if number == 0:
        return np.zeros_like(mask)
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()
