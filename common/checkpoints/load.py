"""Checkpoint files, read without running code, and checked against a network."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError

StateDict = dict[str, Tensor]
# Of a training that can go on. Of several *.pt MONAI Label takes that of the shortest name for the
# model: this one has to be longer.
LAST = "last_epoch.pt"
_SAFE = "2.6"  # of torch; before, weights_only could be got round (CVE-2025-32434)


def load_state_dict(path: str | Path) -> StateDict:
    """Read the parameters in a checkpoint file, without running any code that it may hold.

    A plain state dict, or one under "model" (MONAI), "network_weights" (nnU-Net), "state_dict" or
    "model_state_dict" (VM-UNet).

    Raises:
        InputError: the file is missing, is no checkpoint, or holds more than tensors; or torch is
            too old to read it without running code.
    """
    return state_dict_in(load_checkpoint(path), path)


def state_dict_in(content: Any, path: str | Path) -> StateDict:
    """The parameters in what the checkpoint of that path holds; see `load_state_dict`.

    Raises:
        InputError: there are none.
    """
    content = unwrapped(content)
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"{path} holds no state dict; allowed are names with their tensors.")
    return dict(content)


def load_checkpoint(path: str | Path, mmap: bool = False) -> Any:
    """Read all that a checkpoint file holds, without running any code in it.

    numpy's numbers, which nnU-Net's checkpoints have, become Python's. With `mmap`, tensors that
    nobody looks at stay on the disk.

    Raises:
        InputError: as `load_state_dict`, but for what it holds.
    """
    file = Path(path)
    if torch.__version__ < _SAFE:
        raise InputError(
            f"torch is {torch.__version__}; allowed is one from {_SAFE}, the "
            "first that reads a checkpoint without running any code in it."
        )
    if not os.path.isfile(file):
        raise InputError(
            f"There is no checkpoint {file}; training writes one, --checkpoint names another."
        )
    try:
        mmap = mmap and is_zipfile(file)  # as torch's old format is not
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise InputError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}); allowed are files "
            "that torch.save wrote, with tensors and plain values only."
        ) from error


class _DType:
    """What stands for numpy.dtype, whose own unpickling trusts what it is given."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"{code} is no number")

    def __setstate__(self, state: tuple) -> None:
        order = state[1]  # of the bytes; the rest is the code's
        self.dtype = self.dtype.newbyteorder(order)


def _scalar(dtype: _DType, data: bytes) -> bool | int | float:
    return np.frombuffer(data, dtype.dtype)[0].item()


# By their names in numpy 1 and 2.
_NUMPY: list[Any] = [
    (_DType, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def unwrapped(content: Any) -> Any:
    """The state dict in what a checkpoint holds, where it stands under a key that is known."""
    for key in ("model", "network_weights", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def without_wrappers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """With the names that parameters have outside DistributedDataParallel and torch.compile."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): x for name, x in state_dict.items()}


def members(checkpoint: str | Path | Sequence[str | Path]) -> list[str]:
    """The checkpoint files of an ensemble, or the one file of a single network.

    Of a folder they are ``fold_*/models/model.pt``, in the order of the folds' numbers; in a folder
    without such folders its own ``*.pt`` by name, ``last_epoch.pt`` left out, which a training goes
    on from.

    Args:
        checkpoint: a file, which need not be there yet; a list of files, which may be text as it is
            typed, ``['a.pt', 'b.pt']``; or a folder.

    Raises:
        InputError: a folder has no checkpoint, or one of its folds has none; the list is empty.
    """
    text = str(checkpoint)
    if isinstance(checkpoint, str) and re.fullmatch(r"\[.*\]|\(.*\)", text):
        try:
            checkpoint = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return [text]  # a file's name
    if isinstance(checkpoint, (list, tuple)):
        if not checkpoint:
            raise InputError(
                "checkpoint is an empty list; allowed are one or more files, or a folder of folds."
            )
        return [str(file) for file in checkpoint]
    folder = Path(text)
    if not folder.is_dir():
        return [text]
    folds = [fold for fold in folder.glob("fold_*") if fold.is_dir()]
    folds.sort(key=lambda fold: [int(n) for n in re.findall(r"\d+", fold.name)])
    found = [fold / "models/model.pt" for fold in folds] or sorted(
        file for file in folder.glob("*.pt") if file.name != LAST
    )
    lacking = [file for file in found if not file.is_file()]
    if lacking or not found:
        raise InputError(
            f"The folder {folder} has no {lacking[0].relative_to(folder) if lacking else '*.pt'}; "
            "allowed as checkpoint is one with fold_*/models/model.pt in each of its folds, or "
            "else with the *.pt of an ensemble."
        )
    return [str(file) for file in found]


def check_checkpoint(path: str | Path | Sequence[str | Path], network: nn.Module) -> None:
    """Check that a checkpoint file, or each of several, fits a network, parameter by parameter.

    Raises:
        InputError: as `load_state_dict`; or a parameter is missing, unknown or of another shape.
    """
    if not isinstance(path, (str, Path)):
        for file in path:
            check_checkpoint(file, network)
        return
    found = {name: tuple(x.shape) for name, x in load_state_dict(path).items()}
    wanted = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    differ = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is unknown" for name in found if name not in wanted),
        *(
            f"{name} has shape {found[name]}, not {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
    ]
    if differ:
        raise InputError(
            f"The checkpoint {path} is not of this {type(network).__name__}: {differ[0]}, and "
            f"{len(differ) - 1} other differences; allowed is a checkpoint that was trained with "
            "the same network_def."
        )
