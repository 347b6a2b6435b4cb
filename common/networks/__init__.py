"""Networks, one file per paper."""

from .lcmambanet import LCMambaNet
from .lightm_unet import LightMUNet
from .vmamba import VMambaEncoder

__all__ = ["LCMambaNet", "LightMUNet", "VMambaEncoder"]
