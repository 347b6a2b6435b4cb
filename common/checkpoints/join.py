"""The checkpoint of a cascade: two networks that are trained one after the other, or apart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from .load import StateDict, load_state_dict
from .settings import differences, load_settings

_logger = logging.getLogger(__name__)

# Stage -> what the names of its network's parameters begin with.
_PREFIXES = {"liver": "liver.", "tumor": "tumour."}


def check_stage(stage: str | None, num_classes: int) -> None:
    """Check which of a cascade's networks a training is for, and its labels.

    Raises:
        InputError: the stage is not "liver" or "tumor", or num_classes not 3.
    """
    if stage not in _PREFIXES:
        raise InputError(f"stage is {stage!r}; allowed are {' and '.join(map(repr, _PREFIXES))}.")
    if num_classes != 3:
        raise InputError(
            f"num_classes is {num_classes}; allowed is 3: background, liver and tumour are what "
            "the two stages tell apart."
        )


def keep_other_stage(
    network: nn.Module,
    path: str | Path,
    stage: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Load the network of the stage that is not trained from a cascade's checkpoint.

    So training writes the checkpoint again without loss of the other stage. Without the file that
    network stays as it is initialised, and the log says so; and where the file was trained with
    other settings, for which inference has one place.

    Args:
        network: the cascade; without networks of both stages nothing is done.
        path: the checkpoint.
        stage: the one that is trained, "liver" or "tumor".
        settings: those of this training.

    Raises:
        InputError: the network has not both stages, or the checkpoint's is another one.
    """
    (other,) = _PREFIXES.keys() - {stage}
    own = network.state_dict()
    _check_both_stages(own, f"The network {type(network).__name__}")
    if not Path(path).is_file():
        trained = own.get(f"{_PREFIXES[other]}num_batches_trained")
        state = "of --pretrained" if trained else "untrained"
        _logger.info(f"There is no {path} yet: it will hold the {other} network {state}.")
        return
    weights = load_state_dict(path)
    _check_both_stages(weights, f"The checkpoint {path}")
    theirs, ours = (
        {name: x for name, x in found.items() if name.startswith(_PREFIXES[other])}
        for found in (weights, own)
    )
    if {name: x.shape for name, x in theirs.items()} != {name: x.shape for name, x in ours.items()}:
        raise InputError(
            f"The checkpoint {path} has another {other} network than network_def, which would be "
            "lost; allowed is the one that it was trained with, or a new --ckpt_dir."
        )
    network.load_state_dict(theirs, strict=False)
    _logger.info(f"The {other} network is kept as it is in {path}.")
    kept = load_settings(path) if settings else {}
    trained = f"network_def#{_PREFIXES[stage].rstrip('.')}"
    for id_, now, then in differences("", settings, kept) if kept else ():
        if id_ == trained or id_.startswith(f"{trained}#"):
            continue  # the file will have this training's
        _logger.warning(
            f"{id_} is {now}, and {path} was trained with {then}; both networks will be used "
            f"with {now}."
        )


def join_stages(liver: str | Path, tumor: str | Path) -> StateDict:
    """The state dict of a cascade with each stage from the checkpoint of its own training.

    Raises:
        InputError: as `load_state_dict`; or a checkpoint is not a cascade's, or was not trained for
            its stage.
    """
    joined: StateDict = {}
    for stage, path in (("liver", liver), ("tumor", tumor)):
        weights = load_state_dict(path)
        _check_both_stages(weights, f"The checkpoint {path}")
        own = {name: x for name, x in weights.items() if name.startswith(_PREFIXES[stage])}
        if not own.get(f"{_PREFIXES[stage]}num_batches_trained"):
            raise InputError(
                f"The {stage} network in the checkpoint {path} was never trained; allowed is what "
                f"a training with --stage {stage} wrote."
            )
        joined |= own
    return joined


def join_settings(liver: str | Path, tumor: str | Path) -> dict[str, Any]:
    """The settings of a joined cascade: those of both trainings, each network's from its own.

    Empty where one of the checkpoints has none.

    Raises:
        InputError: as `load_settings`; or they differ in what both networks are used with.
    """
    networks = ("network_def#liver", "network_def#tumour")
    first, second = load_settings(liver), load_settings(tumor)
    if not first or not second:
        return {}
    common = [{k: x for k, x in found.items() if k not in networks} for found in (first, second)]
    if found := next(differences("", *common), None):
        id_, one, other = found
        raise InputError(
            f"{id_} is {one} in {liver} and {other} in {tumor}; allowed are checkpoints whose "
            "trainings differ in their networks alone."
        )
    own = zip(networks, (first, second), strict=True)
    return common[0] | {name: found[name] for name, found in own if name in found}


def _check_both_stages(weights: StateDict, what: str) -> None:
    for stage, prefix in _PREFIXES.items():
        if not any(name.startswith(prefix) for name in weights):
            raise InputError(
                f"{what} has no {stage} network (no parameter {prefix}*); allowed are those of "
                "LiverTumourCascade, whose networks network_def#liver and network_def#tumour are."
            )
    for name in weights:
        if not name.startswith(tuple(_PREFIXES.values())):
            raise InputError(
                f"{what} has a parameter {name}, which belongs to no stage; allowed are "
                f"{' and '.join(f'{prefix}*' for prefix in _PREFIXES.values())}."
            )
