"""Operations: the selective scan and its backends, and FLOPs. Depends on torch only."""

from .chunked import selective_scan_chunked
from .depthwise_conv import depthwise_conv, depthwise_conv_shifted
from .flops import count_flops, flop_formulas
from .layer_norm import layer_norm, residual_norm_linear
from .mamba_mixer import mamba_mixer, mamba_mixer_chunked
from .norms import batch_norm, group_norm, instance_norm
from .selective_scan import (
    BACKENDS,
    Backend,
    dtype_of_products,
    exporting,
    fastest_backend,
    selective_scan,
    why_not,
    without_autocast,
)
from .selective_scan_2d import selective_scan_2d, selective_scan_2d_chunked
from .whole_convolutions import WholeConvolutions

__all__ = [
    "BACKENDS",
    "Backend",
    "WholeConvolutions",
    "batch_norm",
    "count_flops",
    "depthwise_conv",
    "depthwise_conv_shifted",
    "dtype_of_products",
    "exporting",
    "fastest_backend",
    "flop_formulas",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "mamba_mixer",
    "mamba_mixer_chunked",
    "residual_norm_linear",
    "selective_scan",
    "selective_scan_2d",
    "selective_scan_2d_chunked",
    "selective_scan_chunked",
    "why_not",
    "without_autocast",
]
