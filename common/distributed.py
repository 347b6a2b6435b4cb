"""A process group that ends before its process does."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


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
