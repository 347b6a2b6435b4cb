"""How a sentence names an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def image_name(image: Tensor) -> str:
    """The file that a MetaTensor came from."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", "in memory"))


def file_names(files: Any) -> str:
    return ", ".join(map(str, files)) if isinstance(files, (list, tuple)) else str(files)
