"""A bundle on somebody's scans: masks, pictures, numbers and DICOM, by its own inference config."""

from .run import Segmentations, segment

__all__ = ["Segmentations", "segment"]
