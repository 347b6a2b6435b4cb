"""Networks to compare with, of MONAI and of nnU-Net, with outputs as the bundles take them.

In training a list, whose first are the logits; else, and without gradients (as MONAI Label asks for
several samples), the logits alone. MONAI's others give that as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.networks import nets
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ..errors import InputError, how_to_install


class DynUNet(nets.DynUNet):
    """MONAI's nnU-Net, whose training has the logits at each scale in that scale's size.

    MONAI's own has them interpolated to the image's size, in one tensor. As in nnU-Net (Isensee et
    al. 2021, doi:10.1038/s41592-020-01008-z), a loss is to bring the label to the scale instead.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, in_channels, ...) to (b, out_channels, ...), in training a list, finest first."""
        logits = self.output_block(self.skip_layers(x))
        supervised = self.deep_supervision and self.training and torch.is_grad_enabled()
        if not torch.jit.is_scripting() and supervised:
            return [logits, *self.heads]
        return logits


class SegResNetVAE(nets.SegResNetVAE):
    """MONAI's SegResNet with the branch that reconstructs the image (Myronenko, arXiv:1810.11654).

    MONAI's own gives a tuple in evaluation, too, and its loss without the batch's axis.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, in_channels, ...) to (b, out_channels, ...), in training with the branch's loss (b,).

        The loss is one of the batch, the same for each sample. The image has to be of
        `input_image_size` in training, and otherwise may be of any multiple of 8.
        """
        features, skips = self.encode(x)
        skips.reverse()
        logits = self.decode(features, skips)
        regularised = self.training and torch.is_grad_enabled()
        if not torch.jit.is_scripting() and regularised:
            loss = self._get_vae_loss(x, features)
            return [logits, loss.expand(len(x))]
        return logits


class UNETR(nets.UNETR):
    """MONAI's UNETR without layers that it does not use (Hatamizadeh et al., arXiv:2103.10504).

    Each block of MONAI's ViT has those of cross attention, called or not: parameters that never
    have a gradient, which DistributedDataParallel refuses.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.vit.blocks:
            block.cross_attn = block.norm_cross_attn = nn.Identity()


class ResEncUNet(nn.Module):
    """nnU-Net's U-Net with a residual encoder (Isensee et al. 2024, arXiv:2404.09556).

    It is dynamic-network-architectures' ``ResidualEncoderUNet``, by arguments that a config can
    write, initialised as nnU-Net does. The defaults are those of nnU-Net's planner for images that
    can be halved five times.

    Args:
        strides: of each stage, for all axes or for each; the image has to be a multiple of their
            product.
        features: channels of each stage; None is 32, doubled up to 320 in 3D and 512 in 2D.
        kernel_sizes: of each stage, as the strides; None is 3 everywhere.
        blocks_down: residual blocks of each stage of the encoder.
        blocks_up: convolutions of each stage of the decoder, one stage fewer.
        deep_supervision: in training, logits at each scale but the coarsest; without, their heads
            are there, as in nnU-Net, and ask for no gradient.

    Raises:
        InputError: dynamic-network-architectures is not installed.
        ValueError: the arguments are not of as many stages.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        strides: Sequence[int | Sequence[int]] = (1, 2, 2, 2, 2, 2),
        features: Sequence[int] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        blocks_down: Sequence[int] = (1, 3, 4, 6, 6, 6),
        blocks_up: Sequence[int] = (1, 1, 1, 1, 1),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        try:
            from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
        except ImportError as error:
            raise InputError(
                "ResEncUNet needs dynamic-network-architectures, which is not installed: "
                f"{how_to_install('resenc')}."
            ) from error
        stages = len(strides)
        if features is None:
            features = [min(32 * 2**i, 320 if spatial_dims == 3 else 512) for i in range(stages)]
        kernel_sizes = [3] * stages if kernel_sizes is None else kernel_sizes
        for name, value, wanted in (
            ("features", features, stages),
            ("kernel_sizes", kernel_sizes, stages),
            ("blocks_down", blocks_down, stages),
            ("blocks_up", blocks_up, stages - 1),
        ):
            if len(value) != wanted:
                raise ValueError(
                    f"{name} has {len(value)} values; allowed for {stages} strides are {wanted}."
                )
        self.network = ResidualEncoderUNet(
            input_channels=in_channels,
            n_stages=stages,
            features_per_stage=list(features),
            conv_op=Conv[Conv.CONV, spatial_dims],
            kernel_sizes=list(kernel_sizes),
            strides=list(strides),
            n_blocks_per_stage=list(blocks_down),
            num_classes=out_channels,
            n_conv_per_stage_decoder=list(blocks_up),
            conv_bias=True,
            norm_op=getattr(nn, f"InstanceNorm{spatial_dims}d"),
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
        self.network.apply(self.network.initialize)
        self.deep_supervision = deep_supervision
        if not deep_supervision:  # so that DistributedDataParallel waits for no gradient of theirs
            self.network.decoder.seg_layers[:-1].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, in_channels, ...) to (b, out_channels, ...), in training a list, finest first."""
        scales = cast(list[Tensor], self.network(x))
        supervised = self.deep_supervision and self.training and torch.is_grad_enabled()
        return scales if supervised else scales[0]
