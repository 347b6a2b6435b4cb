"""U-Mamba: enhancing long-range dependency for biomedical image segmentation.

Ma, Li and Wang 2024, arXiv:2401.04722. Its authors released two networks under this name: in
January 2024 the one that others compare with (release 1), and in March 2024 another in its place
(release 2). Written from golden vectors made with both, so that their checkpoints load. The paper's
figure shows neither: it has Mamba in the decoder too, and residuals after each activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout
from torch import Tensor, nn

from ..blocks import (
    ConvNorm,
    Mamba,
    Mixer,
    ResidualBlock,
    StagedUNet,
    build_twin,
    check_heads,
    check_mixer,
    check_size,
    init_convolution,
    pooled_skip,
)
from ..ops import Backend, without_autocast

Variant = Literal["bottleneck", "encoder"]
T = TypeVar("T")


class TokenLayer(nn.Module):
    """Layer norm and a mixer of tokens, whose output replaces the map: there is no residual.

    Tokens are the map's sites in row-major order; or with `channel_tokens` its channels, of as many
    features as there are sites. Under autocast it stays in the parameters' precision, but for what
    `Mamba` says of its projections.
    """

    def __init__(self, width: int, mixer: nn.Module, channel_tokens: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.channel_tokens = channel_tokens

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        tokens = x.flatten(2).to(self.norm.weight.dtype)  # (b, c, l)
        if self.channel_tokens:
            return self.mix(tokens, list(shape)).unflatten(2, shape)
        # In this order: for one item, torch takes the strides of the other for another layout.
        mixed = self.mix(tokens.transpose(1, 2), list(shape))
        return mixed.unflatten(1, shape).movedim(-1, 1)

    def mix(self, tokens: Tensor, shape: list[int]) -> Tensor:
        """Norm and mixer of the tokens of a map of size `shape`."""
        if torch.jit.is_scripting():
            return self.mix_normed(self.norm(tokens), shape)
        else:
            with without_autocast(tokens):
                normed = self.norm(tokens)
            return self.mix_normed(normed, shape)

    def mix_normed(self, tokens: Tensor, shape: list[int]) -> Tensor:
        return self.mixer(tokens)


class TwinLayer(TokenLayer):
    """The same with a twin in Mamba's place, which has to know the map's size."""

    def mix_normed(self, tokens: Tensor, shape: list[int]) -> Tensor:
        return self.mixer(tokens, shape)


class EncoderStage(nn.Module):
    """Residual blocks, the first with the stage's stride, then the stage's layer."""

    def __init__(self, blocks: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.blocks(x))


class TransposedUp(nn.Module):
    """Release 1: transposed convolution to the skip's size, its kernel being its stride."""

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = Conv["convtrans", len(stride)](in_channels, channels, stride, stride)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv(x)
        for i, size in enumerate(skip.shape[2:]):  # smaller where the stride has rounded it up
            x = x.narrow(i + 2, 0, size)
        return x


class NearestUp(nn.Module):
    """Release 2: nearest neighbours at the skip's size, at its width."""

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = Conv["conv", len(stride)](in_channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # Narrowed before it grows: the same values, for a fraction of the work.
        return F.interpolate(self.conv(x), size=skip.shape[2:], mode="nearest")


class DecoderStage(nn.Module):
    """Bring the deeper map to the skip's width and size, join the two, and residual blocks."""

    def __init__(self, up: nn.Module, blocks: nn.Module, joined: bool) -> None:
        super().__init__()
        self.up = up
        self.blocks = blocks
        self.joined = joined

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x, skip)
        if self.joined:
            x = torch.cat([x, skip], dim=1)
        return self.blocks(x)


class UMamba(StagedUNet):
    """U-Mamba, images (b, in_channels, ...) to logits (b, out_channels, ...) of equal size.

    Any size works that is at least the product of the strides along each axis, and larger along
    one or more: instance norm needs two sites in the deepest map. But where a stage has at most as
    many sites as channels, release 2's encoder variant takes channels for tokens, and then one
    size: `input_size`.

    In training with `deep_supervision`, `forward` gives a list of logits, finest first, one per
    stage but the deepest, each at its stage's size; else, and in training mode without gradients
    (Monte Carlo dropout), the finest alone: see `common.blocks.StagedUNet`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        variant: where Mamba is: "bottleneck", after the deepest stage (U-Mamba_Bot), or "encoder",
            after every stage (U-Mamba_Enc); of release 2 in 2D after every second, the deepest
            among them.
        release: 1, of January 2024, or 2, since March 2024.
        features: channels of each stage; None is 32, doubled up to 320 in 3D and 512 in 2D.
        kernel_sizes: odd convolution kernels of each stage per axis; None is 3 everywhere.
        strides: step of each stage per axis, that of the first being 1; None is 2 from the second.
            Without features, kernels and strides there are six stages.
        blocks_per_stage: residual blocks of each stage of the encoder; None is 2. Release 2 has one
            in each of the deepest stages // 2, whatever is asked for: its code changes the plan.
        blocks_per_decoder_stage: the same of the decoder, from the deepest, one stage fewer.
            Release 2 has one in each of the finest stages // 2 - 1.
        input_size: of the images, in release 2's encoder variant, which has to know the stages
            whose tokens are channels; of no effect elsewhere.
        deep_supervision: whether training sees the coarser logits too.
        mixer: "mamba"; or in its place "conv", a 3-wide convolution, "attention", after the deepest
            stage alone (elsewhere it would need memory in the square of the sites, and Mamba
            stays), or "identity", nothing, nor the norm: the twin that Isensee et al. 2024 compare
            with (arXiv:2404.09556). With any of these, tokens are sites.
        dropout: probability that a channel of the deepest map is dropped, in training.
        backend: backend of the selective scan.

    Raises:
        ValueError: an argument is not as above, or an image has a size that is not.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        variant: Variant = "bottleneck",
        release: Literal[1, 2] = 2,
        features: Sequence[int] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        blocks_per_stage: Sequence[int] | None = None,
        blocks_per_decoder_stage: Sequence[int] | None = None,
        input_size: Sequence[int] | None = None,
        deep_supervision: bool = False,
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        for name, value, allowed in (
            ("spatial_dims", spatial_dims, (2, 3)),
            ("variant", variant, get_args(Variant)),
            ("release", release, (1, 2)),
        ):
            if value not in allowed:
                first, last = map(repr, allowed)
                raise ValueError(f"{name} is {value!r}; allowed are {first} and {last}.")
        check_mixer(mixer)
        given = (features, kernel_sizes, strides)
        stages = next((len(x) for x in given if x is not None), 6)
        most = 320 if spatial_dims == 3 else 512
        widths = _given(features, [min(32 * 2**s, most) for s in range(stages)])
        kernels = _given(kernel_sizes, [[3] * spatial_dims] * stages)
        steps = _given(strides, [[1 if s == 0 else 2] * spatial_dims for s in range(stages)])
        down = _given(blocks_per_stage, [2] * stages)
        up = _given(blocks_per_decoder_stage, [2] * (stages - 1))
        _check(in_channels, out_channels, widths, dropout)
        _check_stages(spatial_dims, stages, kernels, steps, down, up)
        if mixer == "attention":
            check_heads("features[-1]", widths[-1])
        if release == 2:
            half = math.ceil(stages / 2)
            down = down[:half] + [1] * len(down[half:])
            up = up[:half] + [1] * len(up[half:])

        deepest = stages - 1
        every = 2 if release == 2 and spatial_dims == 2 else 1
        mixed = [deepest] if variant == "bottleneck" else range(deepest, -1, -every)
        by_channel: dict[int, int] = {}  # stages whose tokens are channels, and their sites
        if release == 2 and variant == "encoder" and mixer == "mamba":
            sites = _sites(_given(input_size, []), steps)
            by_channel = {s: sites[s] for s in mixed if sites[s] <= widths[s]}
        reduction = [math.prod(axis) for axis in zip(*steps, strict=True)]
        if by_channel:
            _check_divided(_given(input_size, []), reduction)

        def layer(s: int) -> nn.Module:
            c = widths[s]
            if s not in mixed or mixer == "identity":
                return nn.Identity()
            if mixer == "conv" or (mixer == "attention" and s == deepest):
                return TwinLayer(c, build_twin(mixer, spatial_dims, c))
            width = by_channel.get(s, c)
            return TokenLayer(width, Mamba(width, backend=backend), channel_tokens=s in by_channel)

        def blocks(in_width: int, s: int, stride: Sequence[int], number: int) -> list[nn.Module]:
            c, kernel = widths[s], kernels[s]
            if release == 1:
                skip: nn.Module = pooled_skip(in_width, c, stride)
            else:
                skip = Conv["conv", spatial_dims](in_width, c, 1, stride)
            first = ResidualBlock(in_width, c, kernel, skip, stride)
            rest = (ResidualBlock(c, c, kernel, nn.Identity()) for _ in range(number - 1))
            return [first, *rest]

        def encoder_stage(s: int) -> nn.Module:
            own = blocks(widths[max(s - 1, 0)], s, steps[s], down[s])
            return EncoderStage(nn.Sequential(*own), layer(s))

        def decoder_stage(i: int) -> nn.Module:
            s = deepest - 1 - i
            kind = TransposedUp if release == 1 else NearestUp
            joined = release == 1 or spatial_dims == 3 or s > 0  # as the release's code has it
            own = blocks((1 + joined) * widths[s], s, steps[0], up[i])
            return DecoderStage(
                kind(widths[s + 1], widths[s], steps[s + 1]), nn.Sequential(*own), joined
            )

        if release == 1:
            stem = [ConvNorm(in_channels, widths[0], kernels[0]), nn.LeakyReLU()]
        else:
            stem = blocks(in_channels, 0, steps[0], down[0])
        super().__init__(
            stem=nn.Sequential(*stem),
            encoder=[encoder_stage(s) for s in range(stages)],
            bottleneck=nn.Identity(),
            dropout=Dropout["dropout", spatial_dims](dropout),
            decoder=[decoder_stage(i) for i in range(deepest)],
            heads=[Conv["conv", spatial_dims](c, out_channels, 1) for c in widths[-2::-1]],
            deep_supervision=deep_supervision,
        )
        self.one_size = len(by_channel) > 0
        self.size = _given(input_size, []) if self.one_size else reduction  # that, or the least
        self.apply(init_convolution)
        if release == 1 and variant == "encoder":
            for module in self.modules():
                if isinstance(module, ResidualBlock):  # whose convolutions thus begin with nothing
                    nn.init.zeros_(module.conv2.norm.weight)

    def embed(self, x: Tensor) -> Tensor:
        if not self.one_size:
            check_size(x, self.size)
        elif list(x.shape[2:]) != self.size:
            raise ValueError(
                f"x has size {list(x.shape[2:])}; allowed is {self.size}, the input_size: the "
                "sites of its deepest maps are the features of tokens."
            )
        return self.stem(x)


def _given(value: Sequence[T] | None, default: Sequence[T]) -> list[T]:
    return list(default if value is None else value)


def _sites(input_size: list[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Sites of each stage's map, counted by integer division as the released code does."""
    if len(input_size) != len(strides[0]) or min(input_size) < 1:
        raise ValueError(
            f"input_size is {input_size or None}; needed in release 2's encoder variant are "
            f"{len(strides[0])} whole numbers from 1, the size of its images."
        )
    sites = []
    size = input_size
    for stride in strides:
        size = [n // step for n, step in zip(size, stride, strict=True)]
        sites.append(math.prod(size))
    return sites


def _check_divided(input_size: list[int], reduction: list[int]) -> None:
    if input_size == reduction or any(
        n % step for n, step in zip(input_size, reduction, strict=True)
    ):
        raise ValueError(
            f"input_size is {input_size}; allowed, where a stage has no more sites than channels, "
            f"are multiples of {reduction}, and larger along one axis or more."
        )


def _check(in_channels: int, out_channels: int, features: list[int], dropout: float) -> None:
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels < 1:
            raise ValueError(f"{name} is {channels}; allowed are whole numbers from 1.")
    if len(features) < 2 or min(features) < 1:
        raise ValueError(
            f"features is {features}; allowed are whole numbers from 1, for two stages or more."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")


def _check_stages(
    dims: int,
    stages: int,
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    blocks_per_stage: Sequence[int],
    blocks_per_decoder_stage: Sequence[int],
) -> None:
    for name, values, wanted in (
        ("kernel_sizes", kernel_sizes, stages),
        ("strides", strides, stages),
        ("blocks_per_stage", blocks_per_stage, stages),
        ("blocks_per_decoder_stage", blocks_per_decoder_stage, stages - 1),
    ):
        if len(values) != wanted:
            raise ValueError(
                f"{name} has {len(values)} stages; allowed for a network of {stages} are {wanted}."
            )
    for s, kernel in enumerate(kernel_sizes):
        if len(kernel) != dims or any(k < 1 or k % 2 == 0 for k in kernel):
            raise ValueError(
                f"kernel_sizes[{s}] is {kernel}; allowed are {dims} odd whole numbers from 1."
            )
    for s, stride in enumerate(strides):
        if len(stride) != dims or min(stride) < 1 or (s == 0 and max(stride) > 1):
            raise ValueError(
                f"strides[{s}] is {stride}; allowed are {dims} whole numbers from 1, and at the "
                "first stage 1 only."
            )
    for name, numbers in (
        ("blocks_per_stage", blocks_per_stage),
        ("blocks_per_decoder_stage", blocks_per_decoder_stage),
    ):
        if min(numbers) < 1:
            raise ValueError(f"{name} is {numbers}; allowed are whole numbers from 1.")
