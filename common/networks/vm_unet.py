"""VM-UNet: vision Mamba UNet for medical image segmentation.

Ruan and Xiang 2024, arXiv:2402.02491. Written from golden vectors made with the code that its
authors released, whose checkpoints load. For one class that code ends in a sigmoid; here are
logits always.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..blocks import (
    Mixer,
    PatchExpanding,
    VSSEncoder,
    check_depths,
    drop_path_rates,
    initialise_linear,
    pad_to_multiple,
    vss_stage,
)
from ..ops import Backend

_PATCH = 4  # pixels of a patch each way


class DecoderStage(nn.Module):
    """Double the map and halve its channels, but at the deepest stage; then blocks."""

    def __init__(self, up: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.up(x))


class VMUNet(nn.Module):
    """VM-UNet, images (b, in_channels, h, w) to logits (b, out_channels, h, w).

    Any size works: the image is padded by its edge to a multiple of 32 (for four stages) each way,
    the logits are cropped. As in the released code, an image of one channel is repeated where
    in_channels is 3, and the finest of the encoder's maps goes to the decoder through the others
    alone.

    Args:
        in_channels: channels of the image.
        out_channels: 1, whose logit is that of a sigmoid, or the number of classes with the
            background.
        depths: blocks of each stage of the encoder, finest first. The defaults are those of the
            released configs; the released class's own are (2, 2, 9, 2) and (2, 9, 2, 2).
        decoder_depths: of each stage of the decoder, from the deepest.
        features: channels of each stage, each twice the one before; the first a multiple of 4.
        drop_path: stochastic depth, from 0 at the encoder's first block to this at its last, and
            from this back to 0 over the decoder.
        mixer: "mamba"; or in the place of every scan "identity", nothing, "conv", a depthwise 3 x 3
            convolution, or "attention": see `common.blocks.SS2DTwin`.
        dropout: probability that a channel of the deepest map is dropped, in training.
        backend: backend of the scans.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        features: Sequence[int] = (96, 192, 384, 768),
        drop_path: float = 0.2,
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; allowed are whole numbers from 1.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        self.encoder = VSSEncoder(in_channels, features, depths, _PATCH, drop_path, backend, mixer)
        check_depths("decoder_depths", decoder_depths, len(features))
        if features[0] % _PATCH:
            raise ValueError(f"features[0] is {features[0]}; allowed are multiples of {_PATCH}.")
        self.in_channels = in_channels
        self.multiple = _PATCH * 2 ** (len(features) - 1)
        self.dropout = nn.Dropout2d(dropout)
        self.decoder = nn.ModuleList()
        rates = drop_path_rates(decoder_depths, drop_path, 0.0)
        for i, c in enumerate(reversed(features)):
            up = PatchExpanding(2 * c, c, 2) if i > 0 else nn.Identity()
            self.decoder.append(DecoderStage(up, vss_stage(c, rates[i], backend, mixer)))
        finest = features[0] // _PATCH
        self.final_up = PatchExpanding(features[0], finest, _PATCH)
        self.head = nn.Conv2d(finest, out_channels, 1)
        self.apply(initialise_linear)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if x.shape[1] == 1 and self.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        entered, left = self.encoder(pad_to_multiple(x, self.multiple))
        y = self.dropout(left[-1])
        for i, stage in enumerate(self.decoder):
            if i > 0:
                y = y + entered[len(entered) - i]
            y = stage(y)
        return self.head(self.final_up(y))[..., :height, :width]
