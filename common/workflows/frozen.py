"""Parameters that a training leaves as they are in its first epochs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from ..errors import InputError, listed


class FrozenAtFirst:
    """Handler of a trainer: in its first epochs some parameters have no gradient, and so no step.

    Nor do they decay, or count in the norm at which gradients are clipped. Their gradients are
    computed and thrown away, so that several processes wait for the same ones in every epoch. All
    depends on the trainer's epoch alone, so that a training that was resumed goes on with it.

    Args:
        network: what is trained.
        names: patterns of its parameters' names, with *, ? and [].
        frozen_epochs: so many; of 0, no name is looked for.

    Raises:
        InputError: frozen_epochs is no whole number from 0, or a pattern is of no parameter.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], frozen_epochs: int) -> None:
        if type(frozen_epochs) is not int or frozen_epochs < 0:
            raise InputError(
                f"frozen_epochs is {frozen_epochs!r}; allowed are whole numbers from 0."
            )
        self.frozen_epochs = frozen_epochs
        self.parameters: list[nn.Parameter] = []
        named = dict(network.named_parameters())
        for pattern in names if frozen_epochs else ():
            found = [x for name, x in named.items() if fnmatchcase(name, pattern)]
            if not found:
                parts = dict.fromkeys(name.partition(".")[0] for name in named)
                raise InputError(
                    f"frozen_epochs is {frozen_epochs}, and {pattern} is no parameter of this "
                    f"{type(network).__name__}, whose parts are {listed(parts)}; allowed is 0, or "
                    "a network that has them."
                )
            self.parameters += found

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.epoch <= self.frozen_epochs:
            for parameter in self.parameters:
                parameter.grad = None
