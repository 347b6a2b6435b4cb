"""torch's norms with `common.ops`' arithmetic; parameters, names and defaults are theirs."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import batch_norm, group_norm, instance_norm

# TorchScript has to run where this package is not installed: there they are torch's, contiguous.


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (b, channels, ...), in the weight's precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1).to(self.weight.dtype)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group norm of maps (b, channels, ...), and a ReLU after it where `relu`."""

    def __init__(self, groups: int, channels: int, relu: bool = False) -> None:
        super().__init__(groups, channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            y = F.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
            return y.relu_() if self.relu else y
        else:
            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.relu)


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(channels, affine=affine)
        if not affine:  # the operation has both: constants, in no state dict
            del self.weight, self.bias
            self.register_buffer("weight", torch.ones(channels), persistent=False)
            self.register_buffer("bias", torch.zeros(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.instance_norm(
                x, self.weight, self.bias, None, None, True, 0.0, self.eps, True
            )
        else:
            return instance_norm(x, self.weight, self.bias, self.eps)


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Instance norm of maps (b, channels, h, w); one site becomes the bias.

    It scales and shifts by parameters, but where not `affine`.
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """The same of volumes (b, channels, d, h, w)."""


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        mean, var = self.running_mean, self.running_var
        if torch.jit.is_scripting():  # in eval mode
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            if self.training:
                cast(Tensor, self.num_batches_tracked).add_(1)
            running = cast(Tensor, mean), cast(Tensor, var)
            momentum = cast(float, self.momentum)
            return batch_norm(
                x, *running, self.weight, self.bias, self.training, momentum, self.eps
            )


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch norm of maps (b, channels, h, w)."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch norm of volumes (b, channels, d, h, w)."""
