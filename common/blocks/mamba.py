"""The Mamba-1 block (Gu and Dao 2023, arXiv:2312.00752, section 3.4, figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..ops import (
    Backend,
    dtype_of_products,
    mamba_mixer,
    mamba_mixer_chunked,
    without_autocast,
)


class _Weights(nn.Module):
    """What a block has for an order of its tokens, between the projections that all orders share.

    The block itself is that of the tokens' own order, so its parameters have mamba-ssm's names.
    """

    def add_weights(
        self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, backend: Backend
    ) -> None:
        self.backend: Backend = backend
        linear = NonDynamicallyQuantizableLinear
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def mix(
        self, x: Tensor, in_proj: Tensor, out_proj: Tensor, products: torch.dtype | None
    ) -> Tensor:
        """`mamba_mixer` of tokens in this order."""
        conv_bias = self.conv1d.bias
        assert conv_bias is not None
        weights = (
            in_proj,
            self.conv1d.weight,
            conv_bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log),
            self.D,
            out_proj,
        )
        # TorchScript has to run where this package is not installed: no operator of ours in it.
        if torch.jit.is_scripting():
            return mamba_mixer_chunked(x, *weights)
        else:
            return mamba_mixer(x, *weights, products=products, backend=self.backend)


class _Order(_Weights):
    """One that is not the block's own."""

    def __init__(
        self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, backend: Backend
    ) -> None:
        super().__init__()
        self.add_weights(d_inner, d_state, d_conv, dt_rank, backend)
        init_step_size_projection(self.dt_proj.weight, self.dt_proj.bias)


class _OtherOrders(nn.Module):
    """SegMamba's: tokens from the last to the first, and across `slices` runs of them."""

    def __init__(self, slices: int, sizes: tuple[int, int, int, int], backend: Backend) -> None:
        super().__init__()
        self.slices = slices
        self.reversed = _Order(*sizes, backend)
        self.sliced = _Order(*sizes, backend)

    def forward(
        self, x: Tensor, in_proj: Tensor, out_proj: Tensor, products: torch.dtype | None
    ) -> Tensor:
        """The sum of both, in the tokens' own order."""
        length = x.shape[1]
        if length % self.slices:
            raise ValueError(f"x has {length} tokens; allowed are multiples of {self.slices}.")
        backwards = self.reversed.mix(x.flip(1), in_proj, out_proj, products).flip(1)
        # The first token of each run, then the second of each, ...
        across = x.unflatten(1, [self.slices, -1]).transpose(1, 2).flatten(1, 2)
        across = self.sliced.mix(across, in_proj, out_proj, products)
        return backwards + across.unflatten(1, [-1, self.slices]).transpose(1, 2).flatten(1, 2)


class Mamba(_Weights):
    """Gated selective state-space mixer of tokens, (b, l, d_model) to (b, l, d_model).

    Parameter names and shapes are those of mamba-ssm's ``Mamba``, so its state dicts load. Under
    autocast it stays in the parameters' precision, but that its projections are in bfloat16 where
    autocast is to that, on a CPU if it has AMX; its output is in the parameters' precision. Dynamic
    quantisation leaves it in floating point: one operation reads the weights of all projections.

    Args:
        d_model: channels of a token.
        d_state: states per channel, n in `selective_scan`.
        d_conv: kernel of the causal depthwise convolution before the scan.
        expand: inner channels per channel of a token.
        dt_rank: rank of the step-size projection; None is ceil(d_model / 16).
        slices: None mixes tokens in their order alone. A number adds SegMamba's other two orders
            (Xing et al. 2024, arXiv:2401.13560, tri-orientated Mamba), each with weights of its own
            but for the first and the last projection: the reverse; and with the sequence, a
            multiple of `slices`, cut into so many runs, the first token of each run, then the
            second of each, and so on. The output is the sum of the three.
        backend: backend of `mamba_mixer`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        slices: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        for name, value in (
            ("d_model", d_model),
            ("d_state", d_state),
            ("d_conv", d_conv),
            ("expand", expand),
            ("dt_rank", self.dt_rank),
            ("slices", 1 if slices is None else slices),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        d_inner = expand * d_model
        self.d_state = d_state
        self.d_conv = d_conv

        linear = NonDynamicallyQuantizableLinear
        sizes = (d_inner, d_state, d_conv, self.dt_rank)
        self.in_proj = linear(d_model, 2 * d_inner, bias=False)
        self.add_weights(*sizes, backend)
        self.out_proj = linear(d_inner, d_model, bias=False)
        init_step_size_projection(self.dt_proj.weight, self.dt_proj.bias)
        self.others = None if slices is None else _OtherOrders(slices, sizes, backend)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.mix_orders(x, None)
        else:
            own = self.D.dtype
            products = dtype_of_products(x, own)
            with without_autocast(x):
                return self.mix_orders(x.to(own), products)

    def mix_orders(self, x: Tensor, products: torch.dtype | None) -> Tensor:
        """What `forward` does, with products in a precision; None is x's."""
        in_proj, out_proj = self.in_proj.weight, self.out_proj.weight
        y = self.mix(x, in_proj, out_proj, products)
        # Each order projects anew, though both projections are of each token alone: once would do
        # for all orders, with the same parameters. But from projection to projection an order is
        # one operation, which keeps what lies between in the cache, or computes it again backward.
        if self.others is not None:
            y = y + self.others(x, in_proj, out_proj, products)
        return y


class MambaMixer(nn.Module):
    """Layer norm, Mamba, residual, over all sites of a map (b, channels, ...), row by row.

    Args:
        channels: channels of the map.
        slices: as in `Mamba`; the map's sites have to be a multiple of it.
        backend: backend of `mamba_mixer`.
    """

    def __init__(self, channels: int, slices: int | None = None, backend: Backend = "auto") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, slices=slices, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).to(self.norm.weight.dtype)  # (b, sites, c)
        return x + self.mamba(self.norm(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])


def init_step_size_projection(weight: Tensor, bias: Tensor) -> None:
    """Initialise the projection that lifts dt to the channels, in place.

    softplus(bias) is log-uniform in [1e-3, 1e-1] and the weight, (..., channels, rank), uniform
    within rank^-1/2 (Gu and Dao 2023, section 3.6, and its released code).
    """
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    step = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
    with torch.no_grad():
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
