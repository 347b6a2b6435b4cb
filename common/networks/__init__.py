"""Networks, one file per paper."""

from .cascade import LiverTumourCascade
from .codebook_mamba_unet import CodebookMambaUNet
from .elanres_msca_unet import ELANResMSCAUNet
from .lcmambanet import LCMambaNet
from .lightm_unet import LightMUNet
from .mambaclinix import MambaClinix
from .vmamba import VMambaEncoder

__all__ = [
    "CodebookMambaUNet",
    "ELANResMSCAUNet",
    "LCMambaNet",
    "LightMUNet",
    "LiverTumourCascade",
    "MambaClinix",
    "VMambaEncoder",
]
