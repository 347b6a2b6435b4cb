"""Mamba segmentation networks for MONAI: operations, blocks, networks, data and tools."""

__version__ = "0.1.0"
