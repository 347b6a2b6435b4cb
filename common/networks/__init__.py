"""Networks, one file per paper."""

from .codebook_mamba_unet import CodebookMambaUNet
from .lcmambanet import LCMambaNet
from .lightm_unet import LightMUNet
from .mambaclinix import MambaClinix
from .vmamba import VMambaEncoder

__all__ = ["CodebookMambaUNet", "LCMambaNet", "LightMUNet", "MambaClinix", "VMambaEncoder"]
