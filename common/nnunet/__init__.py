"""Trainers that nnU-Net finds in this folder, each with the network and the recipe of its paper.

nnU-Net imports the files here by their own names, not as parts of this package, and looks in every
one of them: nothing else is to be here, and what they import they name in full.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError, how_to_install


def trainers_folder() -> Path:
    """This folder, for nnU-Net's environment variable nnUNet_extTrainer.

    Raises:
        InputError: nnunetv2 is not installed.
    """
    if find_spec("nnunetv2") is None:
        raise InputError(
            f"nnU-Net is not installed: {how_to_install('plan')}, or pip install nnunetv2."
        )
    return Path(__file__).parent
