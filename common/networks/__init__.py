"""Networks, one file per paper."""

from .lightm_unet import LightMUNet

__all__ = ["LightMUNet"]
