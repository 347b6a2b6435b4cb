"""How a sentence names an image: its file and its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def image_name(image: Tensor) -> str:
    """The file that a MetaTensor came from."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", "in memory"))


def file_names(files: Any) -> str:
    return ", ".join(map(str, files)) if isinstance(files, (list, tuple)) else str(files)


def format_size(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)
