"""Published checkpoints, renamed for a strict load into the networks of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

StateDict = dict[str, Tensor]


def convert_checkpoint(state_dict: Mapping[str, object], network: str) -> StateDict:
    """State dict for one of our networks from a checkpoint of its paper's released code.

    Args:
        state_dict: parameter names to tensors; or a checkpoint that holds them under a key as for
            `load_state_dict`, such as nnU-Net's ``network_weights``. Prefixes of
            DistributedDataParallel and torch.compile are removed.
        network: "lightm_unet".

    Raises:
        InputError: the network is unknown, or a parameter is none that its released code has.
    """
    if network not in _CONVERTERS:
        raise InputError(f"network is {network!r}; allowed are {', '.join(sorted(_CONVERTERS))}.")
    weights = _unwrapped(state_dict).items()
    plain = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): x for name, x in weights}
    return _CONVERTERS[network](plain)


def load_state_dict(path: str | Path) -> StateDict:
    """Read the parameters in a checkpoint file, without running any code that it may hold.

    A plain state dict, or one under "model" (MONAI), "network_weights" (nnU-Net) or "state_dict".

    Raises:
        InputError: the file is missing, is no checkpoint, or holds more than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"There is no checkpoint {file}; training writes one, --checkpoint names another."
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}); allowed are files "
            "that torch.save wrote, with tensors and plain values only."
        ) from error
    content = _unwrapped(content)
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise InputError(f"{file} holds no state dict; allowed are names with their tensors.")
    return dict(content)


def _unwrapped(content: Any) -> Any:
    """The state dict in what a checkpoint holds, where it stands under a key that is known."""
    for key in ("model", "network_weights", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def check_checkpoint(path: str | Path, network: nn.Module) -> None:
    """Check that a checkpoint file fits a network, parameter by parameter.

    Raises:
        InputError: as `load_state_dict`; or a parameter is missing, unknown or of another shape.
    """
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


_LIGHTM_UNET: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"convInit\.0\.conv\.", "stem.depthwise."),
    (r"convInit\.1\.conv\.", "stem.pointwise."),
    (r"down_layers\.(\d+)\.0\.0\.", r"encoder.\1.down.0."),
    (r"down_layers\.(\d+)\.(\d+)\.norm", lambda m: f"encoder.{m[1]}.blocks.{int(m[2]) - 1}.norm"),
    (
        r"down_layers\.(\d+)\.(\d+)\.conv(\d)\.",
        lambda m: f"encoder.{m[1]}.blocks.{int(m[2]) - 1}.layer{m[3]}.",
    ),
    (r"up_samples\.(\d+)\.0\.conv\.", r"decoder.\1.reduce."),
    (r"up_layers\.(\d+)\.(\d+)\.conv\.0\.conv\.", r"decoder.\1.blocks.\2.conv.depthwise."),
    (r"up_layers\.(\d+)\.(\d+)\.conv\.1\.conv\.", r"decoder.\1.blocks.\2.conv.pointwise."),
    (r"up_layers\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
    (r"conv_final\.0\.", "head.norm."),
    (r"conv_final\.2\.0\.conv\.", "head.conv.depthwise."),
    (r"conv_final\.2\.1\.conv\.", "head.conv.pointwise."),
]


def _lightm_unet(state_dict: Mapping[str, Tensor]) -> StateDict:
    renamed = {}
    for name, x in state_dict.items():
        for pattern, replacement in _LIGHTM_UNET:
            new, found = re.subn("^" + pattern, replacement, name)
            if found:
                renamed[new.replace(".mamba.", ".mixer.")] = x
                break
        else:
            raise InputError(
                f"The checkpoint has a parameter {name!r}, which LightM-UNet's released code has "
                "not; allowed are checkpoints of that code."
            )
    return renamed


_CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], StateDict]] = {"lightm_unet": _lightm_unet}
