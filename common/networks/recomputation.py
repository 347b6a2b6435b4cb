"""Training in less memory: a level's maps are computed again when its gradients are.

Chen et al. 2016, arXiv:1604.06174; torch calls it checkpointing.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..ops import WholeConvolutions
from .codebook_mamba_unet import CodebookMambaUNet
from .comparison import ResEncUNet
from .elanres_msca_unet import ELANResMSCAUNet
from .lcmambanet import LCMambaNet
from .lightm_unet import LightMUNet
from .mambaclinix import MambaClinix
from .segmamba import SegMamba
from .swin_umamba import SwinUMamba
from .umamba import UMamba
from .vm_unet import VMUNet

# Networks, those derived from them too, and as regular expressions what their levels are called.
_LEVELS: dict[type[nn.Module], str] = {
    CodebookMambaUNet: r"(en|de)coder\.\d+",
    ELANResMSCAUNet: r"(en|de)coder\.\d+",
    LCMambaNet: r"(encoder\.stages|laterals|refinements)\.\d+",
    LightMUNet: r"(en|de)coder\.\d+",
    MambaClinix: r"(en|de)coder\.\d+|bottleneck",
    ResEncUNet: r"network\.(en|de)coder\.stages\.\d+",
    SegMamba: r"encoder\.\d+|bottleneck|decoder\.(levels\.\d+|final)",
    SwinUMamba: r"encoder\.stages\.\d+|decoder\.(levels\.\d+|final)",
    UMamba: r"(en|de)coder\.\d+",
    VMUNet: r"encoder\.stages\.\d+|decoder\.\d+",
    nets.AttentionUnet: r"model\.0|.*\.(submodule\.0|upconv|attention|merge)",
    nets.BasicUNet: r"conv_0|(down|upcat)_\d",
    nets.DynUNet: r"input_block|(down|up)samples\.\d+|bottleneck",
    nets.MedNeXt: r"(enc_stages|down_blocks|up_blocks|dec_stages)\.\d+|bottleneck",
    nets.SegResNet: r"(down|up)_layers\.\d+",
    nets.SwinUNETR: r"swinViT\.layers\d\.0|(en|de)coder\d+",
    nets.UNETR: r"vit\.blocks\.\d+|(en|de)coder\d",
    nets.VNet: r"(in|out)_tr|(down|up)_tr\d+",
}


def recompute_levels(network: nn.Module, checkpointing: bool) -> None:
    """Have a network in training keep no more of its levels than what goes into them.

    All else in a level is computed again in the backward pass, with the same random numbers, so
    that outputs, gradients and the statistics of batch norms are, bit for bit, those of a network
    that keeps everything. Evaluation and the state dict stay as they are.

    Args:
        network: changed in place; of this package, or of those to compare with. A network that is
            made of these, as `LiverTumourCascade`, is one too.
        checkpointing: False leaves it as it is.

    Raises:
        InputError: the network's levels are not known here.
    """
    if not checkpointing:
        return
    levels = [
        level
        for part in network.modules()
        for kind, names in _LEVELS.items()
        if isinstance(part, kind)
        for name, level in part.named_modules()
        if re.fullmatch(names, name)
    ]
    if not levels:
        known = ", ".join(sorted(kind.__name__ for kind in _LEVELS))
        raise InputError(
            f"checkpointing is True, and the levels of {type(network).__name__} are not known; "
            f"allowed is False, or True with {known}."
        )
    for level in levels:
        kind = type(level)
        level.__class__ = type(kind.__name__, (_Recomputed, kind), {})


class _Recomputed(nn.Module):
    """What a level does, before its class in the order of methods."""

    def forward(self, *inputs: Tensor, **named: Any) -> Any:
        if not self.training:
            return super().forward(*inputs, **named)
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (WholeConvolutions(), _SecondTime(self)),
            **named,
        )


class _SecondTime(WholeConvolutions):
    """In it a level leaves its buffers as they are: batch norms count a batch once."""

    def __init__(self, level: nn.Module) -> None:
        super().__init__()
        self._level = level

    def __enter__(self) -> _SecondTime:
        self._buffers = [buffer.clone() for buffer in self._level.buffers()]
        super().__enter__()
        return self

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for buffer, before in zip(self._level.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
