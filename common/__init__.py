"""Mamba segmentation networks for MONAI: operations, blocks, networks, data and tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .workflows import segment

__all__ = ["__version__", "segment"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`segment`, when it is asked for: with it comes all that it takes."""
    if name == "segment":
        from .workflows import segment

        return segment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
