"""Checkpoints and bundles of the model zoo."""

from .checkpoints import convert_checkpoint

__all__ = ["convert_checkpoint"]
