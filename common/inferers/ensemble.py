"""Several trained networks of one kind as one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ..checkpoints import load_state_dict
from ..errors import InputError
from .sums import Mean

_logger = logging.getLogger(__name__)

# Probabilities to mean, and logits that have the mean.
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softmax": (lambda x: x.float().softmax(1), lambda p: p.clamp_min(1e-38).log()),
    "sigmoid": (lambda x: x.float().sigmoid(), lambda p: torch.logit(p, 1e-7)),
}


class EnsembleInferer(Inferer):
    """The mean of the probabilities of several checkpoints' networks, as logits.

    One after the other they are loaded into the network. With one checkpoint, which who calls has
    loaded, the logits are the other inferer's.

    Args:
        inferer: how each is applied.
        members: the files of the checkpoints (`common.checkpoints.members`).
        activation: what makes probabilities of logits, "softmax" over the classes or "sigmoid". One
            channel is a sigmoid's.

    Raises:
        InputError: activation is neither; or, at a call, a checkpoint cannot be read.
    """

    def __init__(
        self, inferer: Inferer, members: Sequence[str | Path], activation: str = "softmax"
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise InputError(f"activation is {activation!r}; allowed are softmax and sigmoid.")
        self.inferer = inferer
        self.members = list(members)
        self.activation = activation

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (b, classes, ...) of images (b, channels, ...)."""
        if len(self.members) < 2:
            return self.inferer(inputs, network, *args, **kwargs)
        mean: Mean | None = None
        for member in self.members:
            network.load_state_dict(load_state_dict(member))
            output = self.inferer(inputs, network, *args, **kwargs)
            if mean is None:
                single = output.shape[1] == 1
                probabilities, logits = _ACTIVATIONS["sigmoid" if single else self.activation]
                mean = Mean(output, probabilities)
            else:
                mean.add(output)
            del output  # what is on disk need not be there twice
        assert mean is not None
        return mean.result(logits)
