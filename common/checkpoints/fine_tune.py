"""Fine-tuning: a training that starts from weights of another, and may leave some as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError, listed
from .load import load_state_dict, without_wrappers

_logger = logging.getLogger(__name__)


def fine_tune(
    network: nn.Module,
    pretrained: str | Path | None = None,
    freeze: str | Sequence[str] | None = None,
) -> None:
    """Load what fits a network from a checkpoint, and freeze parameters by their names.

    A module of which a tensor does not fit, as the last layer for other classes or the first for
    other channels, stays as it is initialised, whole: a bias or a flag means nothing without its
    weight. A counter is taken only with all that it counts for. The log tells how much was taken,
    and what was not. A frozen parameter asks for no gradient; buffers, such as the running
    statistics of a batch norm, go on changing in training. To be called before the optimiser is
    built.

    Args:
        network: is changed in place.
        pretrained: see `load_state_dict`; None loads nothing.
        freeze: patterns of parameters' names, with * and ?, such as "encoder.*".

    Raises:
        InputError: as `load_state_dict`; nothing in the checkpoint fits; a pattern is of no
            parameter; or nothing is left to learn.
    """
    if pretrained is not None:
        _load(network, pretrained)
    if freeze is not None:
        _freeze(network, [freeze] if isinstance(freeze, str) else freeze)


def _load(network: nn.Module, path: str | Path) -> None:
    own = network.state_dict()
    found = without_wrappers(load_state_dict(path))
    others = {k for k, x in found.items() if k in own and x.shape != own[k].shape}
    apart = {_module(name) for name in others}
    fits = {k: x for k, x in found.items() if k in own and _module(k) not in apart}
    lacking = own.keys() - fits
    for name in [name for name, x in fits.items() if _counts(x)]:
        if any(other.startswith(_module(name)) for other in lacking):
            del fits[name]
    if not fits:
        raise InputError(
            f"Nothing in the checkpoint {path} fits this {type(network).__name__}: it begins with "
            f"{listed(found, 3) or 'nothing'}; allowed are checkpoints of such a network, those of "
            "a paper's released code after `python -m common convert`."
        )
    network.load_state_dict(fits, strict=False)
    shapes = [
        f"{name} has shape {tuple(x.shape)}, not {tuple(own[name].shape)}"
        for name, x in found.items()
        if name in others
    ]
    companions = [name for name in found if name in own and name not in {*fits, *others}]
    missing = [name for name in own if name not in found]
    unknown = [name for name in found if name not in own]
    _logger.info(
        f"Fine-tuning: {len(fits)} of {len(own)} tensors are those of {path}. As initialised, for "
        f"another shape there: {listed(shapes) or 'none'}. As initialised, for they belong to "
        f"what is: {listed(companions) or 'none'}. As initialised, for they are not there: "
        f"{listed(missing) or 'none'}. Left out, for this network has them not: "
        f"{listed(unknown) or 'none'}."
    )


def _module(name: str) -> str:
    """What the names of its module's tensors begin with: a.b. of a.b.weight."""
    return name[: name.rfind(".") + 1]


def _counts(x: Tensor) -> bool:
    """Whether it is a counter or a flag, as a batch norm's and a codebook's."""
    return x.dim() == 0 and not x.is_floating_point()


def _freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    parameters = dict(network.named_parameters())
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
        raise InputError(f"freeze is {patterns}; allowed are patterns of names, such as encoder.*.")
    frozen = set()
    for pattern in patterns:
        matched = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matched:
            parts = dict.fromkeys(name.partition(".")[0] for name in parameters)
            raise InputError(
                f"freeze is {pattern!r}, which is no parameter's name; allowed are patterns of "
                f"names that begin with {', '.join(parts)}, such as {next(iter(parts))}.*."
            )
        frozen |= matched
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(x.requires_grad for x in parameters.values()):
        raise InputError(
            f"freeze is {', '.join(patterns)}: nothing is left to learn; allowed are patterns that "
            "leave some parameters."
        )
    _logger.info(f"Frozen: {len(frozen)} of {len(parameters)} parameters.")
