"""Pretrained encoders, for fine-tuning."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError
from .convert import convert_checkpoint
from .load import load_state_dict

_logger = logging.getLogger(__name__)


def load_encoder(network: nn.Module, path: str | Path | None) -> None:
    """Load an ImageNet classifier of VMamba's release into a network's encoder, and log what of it.

    The first convolution is adapted where the encoder has other input channels: its kernels are
    averaged and scaled, so that a grey image gives what it gave.

    Args:
        network: has a VMambaEncoder as ``network.encoder``.
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
                "release's vssm1_tiny_0230 (0230s is narrower), VMamba-Small vssm_small_0229."
            )
    missing = encoder.load_state_dict(weights, strict=False).missing_keys
    left = [name for name in state_dict if "classifier." in name]
    _logger.info(
        f"Loaded {len(weights)} parameters of the encoder from {path}. Left out: "
        f"{', '.join(left) or 'none'}. Missing, so as initialised: {', '.join(missing) or 'none'}."
    )


def _for_channels(kernels: Tensor, channels: int) -> Tensor:
    """Kernels (out, in, ...) for another number of input channels, of equal response to grey."""
    given = kernels.shape[1]
    if channels == given:
        return kernels
    mean = kernels.mean(1, keepdim=True) * (given / channels)
    return mean.expand(-1, channels, *kernels.shape[2:]).clone()
