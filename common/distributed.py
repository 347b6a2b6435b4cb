"""What the processes of a training, its ranks, compute together, as one rank would.

DistributedDataParallel trains the mean of the ranks' losses. That is the loss of their global
batch where it is a mean over equal numbers of samples; a ratio of sums over the batch, a norm's
statistics and prototypes drawn from the batch need the ranks' sums or samples. Without a process
group, or with one rank, everything here leaves what it is given as it is. Otherwise all ranks must
call it, in the same order, forward and backward.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Network = TypeVar("Network", bound=nn.Module)


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def several_ranks() -> bool:
    return ranks() > 1


class _Sum(torch.autograd.Function):
    """A rank's part has a share in what every rank makes of the sum: so do its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _Sum.apply(dy)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of the ranks' tensors of one shape, differentiable; the same on all."""
    return _Sum.apply(x) if several_ranks() else x


def mean_over_ranks(mean: Tensor, count: int | Tensor) -> Tensor:
    """The mean of what all ranks have, from the mean of a rank's, a scalar, and their number.

    Of nothing on any rank it is 0.
    """
    if not several_ranks():
        return mean
    total, number = sum_over_ranks(torch.stack([mean * count, torch.zeros_like(mean) + count]))
    return total / torch.where(number > 0, number, 1)


def any_over_ranks(mask: Tensor) -> bool:
    """Whether a mask has a True on any rank."""
    return bool(sum_over_ranks(mask.any().int()))


def samples_of_ranks(x: Tensor) -> Tensor:
    """The global batch of samples (b, ...), without gradients, in the order of one rank's.

    It is that in which a DistributedSampler deals samples out, one to each rank in turn.
    """
    if not several_ranks():
        return x
    x = x.detach().contiguous()
    batches = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(batches, x)
    return torch.stack(batches, 1).flatten(0, 1)


def synchronized(network: Network) -> Network:
    """Give a network's batch norms, in place, the statistics of the global batch in training.

    Names and values in the state dict stay. On CUDA they become torch's ``SyncBatchNorm``, which
    has no kernels for a CPU; there they stay what they are, with sums over the ranks.

    Args:
        network: on its device, and not a batch norm itself.
    """
    if next(network.parameters()).is_cuda:
        network = cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    for module in network.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _SyncBatchNorm
        elif isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(kind.__name__, (_OverRanks, kind), {})
    return network


class _SyncBatchNorm(nn.SyncBatchNorm):
    """torch's, in the weight's precision, as the norms of `common.blocks`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_as_weight(x, self))


def _as_weight(x: Tensor, norm: _BatchNorm) -> Tensor:
    """In the weight's precision, where the norm has one (`affine`)."""
    return x if norm.weight is None else x.to(norm.weight.dtype)


class _OverRanks(_BatchNorm):
    """What a batch norm on the CPU does in training, before its class in the order of methods."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and several_ranks()):
            return super().forward(x)
        channel = [1, -1, *[1] * (x.dim() - 2)]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        x = _as_weight(x, self)
        count = sum_over_ranks(torch.tensor(x.numel() // x.shape[1]))
        # In float64, as those of common.ops: a volume has millions of sites.
        mean = sum_over_ranks(x.sum(axes, dtype=torch.float64)) / count
        centred = x - mean.to(x.dtype).view(channel)
        var = sum_over_ranks(centred.square().sum(axes, dtype=torch.float64)) / count
        if self.track_running_stats:
            self._track(mean, var * (count / (count - 1)))
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale.to(x.dtype).view(channel)
        return y if self.bias is None else y + self.bias.view(channel)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        batches = cast(Tensor, self.num_batches_tracked).add_(1)
        # Without a momentum they are the mean over all batches.
        share = 1 / batches.item() if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, var)):
            cast(Tensor, running).lerp_(now.to(cast(Tensor, running).dtype), share)


def end_process_group(network: DistributedDataParallel) -> None:
    """Take a network out of the default group, and end the group and its threads.

    Where anything refers to the group until the interpreter ends, gloo's threads live as long, and
    one that has yet to free a tensor of the last collective operation aborts the process then
    ("terminate called without an active exception", exit code -6).

    Args:
        network: not usable afterwards, unlike the module that it wraps.
    """
    # Before the group: gloo may wait for ever where the network's is the last reference.
    del network.reducer, network.logger, network.process_group
    dist.destroy_process_group()
