"""Pretrained encoders, for fine-tuning."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError, listed
from .convert import convert_checkpoint
from .load import StateDict, load_state_dict

_logger = logging.getLogger(__name__)


def load_encoder(network: nn.Module, path: str | Path | None) -> None:
    """Load an ImageNet classifier of VMamba's release into a network's encoder, and log what of it.

    The first convolution is adapted where the encoder has other input channels: its kernels are
    averaged and scaled, so that a grey image gives what it gave.

    Of VMamba's first version it is as in the released code of Swin-UMamba and VM-UNet: patches that
    the encoder embeds otherwise stay as initialised, of a deeper classifier's stages the first
    blocks are taken, and those of VM-UNet's decoder are the encoder's, the deepest stage's first.

    Args:
        network: has a VMambaEncoder as ``network.encoder``, or a `common.blocks.VSSEncoder`.
        path: the checkpoint; None leaves the network as it is initialised.

    Raises:
        InputError: as `load_state_dict` and `convert_checkpoint`; or the network has no encoder of
            the checkpoint's shapes.
    """
    if path is None:
        _logger.info("No pretrained encoder is given: training starts from scratch.")
        return
    encoder = getattr(network, "encoder", nn.Module())
    own = encoder.state_dict()
    state_dict = load_state_dict(path)
    if any(".self_attention." in name for name in state_dict):
        _load_first_version(network, convert_checkpoint(state_dict, "vmamba_v1"), path)
        return
    weights = convert_checkpoint(state_dict, "vmamba")
    first = "patch_embedding.conv1.weight"
    if first in weights and first in own:
        weights[first] = _for_channels(weights[first], own[first].shape[1])
    for name, x in weights.items():
        if name not in own or x.shape != own[name].shape:
            allowed = tuple(own[name].shape) if name in own else "no such parameter"
            raise InputError(
                f"The checkpoint {path} does not fit this {type(network).__name__}'s encoder: "
                f"{name} has shape {tuple(x.shape)}, allowed is {allowed}. VMamba-Tiny is its "
                "release's vssm1_tiny_0230 (0230s is narrower), VMamba-Small vssm_small_0229; "
                "SwinUMamba and VMUNet take those of its first version, as vmamba_tiny_e292."
            )
    missing = encoder.load_state_dict(weights, strict=False).missing_keys
    left = [name for name in state_dict if "classifier." in name]
    _logger.info(
        f"Loaded {len(weights)} parameters of the encoder from {path}. Left out: "
        f"{', '.join(left) or 'none'}. Missing, so as initialised: {', '.join(missing) or 'none'}."
    )


_PATCHES = "encoder.downs.0."


def _load_first_version(network: nn.Module, weights: StateDict, path: str | Path) -> None:
    own = network.state_dict()
    stages = {int(found[1]) for k in own if (found := re.match(r"encoder\.stages\.(\d+)\.", k))}
    taken: StateDict = {}
    for name, x in weights.items():
        places = [f"encoder.{name}"]
        if found := re.match(r"stages\.(\d+)\.(.+)", name):
            # Of networks of this package VM-UNet's decoder alone has such names.
            places.append(f"decoder.{max(stages, default=0) - int(found[1])}.blocks.{found[2]}")
        for place in places:
            if place not in own:
                continue
            if x.shape != own[place].shape and not place.startswith(_PATCHES):
                raise InputError(
                    f"The checkpoint {path} does not fit this {type(network).__name__}: {place} "
                    f"has shape {tuple(x.shape)}, allowed is {tuple(own[place].shape)}. Those of "
                    "VMamba's first version are vmamba_tiny_e292 and vmamba_small_e238_ema."
                )
            taken[place] = x
    patches = {name for name in taken if name.startswith(_PATCHES)}
    if any(taken[name].shape != own[name].shape for name in patches):
        taken = {name: x for name, x in taken.items() if name not in patches}
    if not any(name.startswith("encoder.stages.") for name in taken):
        raise InputError(
            f"The checkpoint {path} does not fit this {type(network).__name__}'s encoder, which is "
            "none of VMamba's first version; allowed are SwinUMamba and VMUNet."
        )
    network.load_state_dict(taken, strict=False)
    of_encoder = [name for name in own if name.startswith("encoder.")]
    left = [name for name in weights if f"encoder.{name}" not in taken]
    missing = [name for name in of_encoder if name not in taken]
    decoder = sum(not name.startswith("encoder.") for name in taken)
    _logger.info(
        f"Loaded {len(of_encoder) - len(missing)} parameters of the encoder and {decoder} of the "
        f"decoder from {path}. Left out: {listed(left) or 'none'}. Missing, so as initialised: "
        f"{listed(missing) or 'none'}."
    )


def _for_channels(kernels: Tensor, channels: int) -> Tensor:
    """Kernels (out, in, ...) for another number of input channels, of equal response to grey."""
    given = kernels.shape[1]
    if channels == given:
        return kernels
    mean = kernels.mean(1, keepdim=True) * (given / channels)
    return mean.expand(-1, channels, *kernels.shape[2:]).clone()
