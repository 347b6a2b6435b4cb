"""Networks, one file per paper, and those to compare with."""

from .cascade import LiverTumourCascade
from .codebook_mamba_unet import CodebookMambaUNet
from .comparison import UNETR, DynUNet, ResEncUNet, SegResNetVAE
from .elanres_msca_unet import ELANResMSCAUNet
from .lcmambanet import LCMambaNet
from .lightm_unet import LightMUNet
from .mambaclinix import MambaClinix
from .recomputation import recompute_levels
from .segmamba import SegMamba
from .swin_umamba import SwinUMamba
from .umamba import UMamba
from .vm_unet import VMUNet
from .vmamba import VMambaEncoder

__all__ = [
    "UNETR",
    "CodebookMambaUNet",
    "DynUNet",
    "ELANResMSCAUNet",
    "LCMambaNet",
    "LightMUNet",
    "LiverTumourCascade",
    "MambaClinix",
    "ResEncUNet",
    "SegMamba",
    "SegResNetVAE",
    "SwinUMamba",
    "UMamba",
    "VMUNet",
    "VMambaEncoder",
    "recompute_levels",
]
