"""A bundle on somebody's scans: masks, pictures, numbers and DICOM, by its own inference config."""

from .pages import Views, view_results
from .run import Segmentations, segment

__all__ = ["Segmentations", "Views", "segment", "view_results"]
