"""How images have to lie for the weights of a release, as settings that go with them.

The releases of LightM-UNet, MambaClinix, U-Mamba and Swin-UMamba are inside nnU-Net, and SegMamba's
reads images as that does. Their axes are its (z, y, x), or (y, x), and their tokens are in that
order, as are those of VM-UNet, which reads pictures row by row: of images that lie otherwise, or
with strides of other axes, the masks would be wrong, and nothing would say so. Nor of intensities
that are others' than those of their training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError
from .intensity import ct_intensity, z_score_intensity

# What the weights do not show of the nnU-Net plan of their training, in 3D or of slices.
_PLANNED = {
    "lightm_unet": ["spacing", "patch_size", "intensity"],
    "mambaclinix": ["spacing", "patch_size", "intensity", "strides"],
    "segmamba": ["spacing", "patch_size", "intensity"],
    "umamba": ["spacing", "patch_size", "intensity", "strides"],
    "swin_umamba": ["spacing", "patch_size", "intensity"],
}
# The first convolution, by release, its axis of the image's channels, and the last one.
_ENDS = {
    "lightm_unet": (("stem.depthwise.weight",), 0, "head.conv.pointwise.weight"),
    "mambaclinix": (("stem.conv.weight",), 1, "heads.0.weight"),
    "segmamba": (("encoder.0.down.0.weight",), 1, "head.weight"),
    "umamba": (("stem.0.conv.weight", "stem.0.conv1.conv.weight"), 1, "heads.0.weight"),
    "swin_umamba": (("stem.0.weight", "encoder.downs.0.conv.weight"), 1, "heads.0.weight"),
    "vm_unet": (("encoder.downs.0.conv.weight",), 1, "head.weight"),
}

_Z_SCORES = {"z-score": False, "nonzero z-score": True}  # and whether 0 is left out


def released_settings(weights: Mapping[str, Tensor], network: str, **plan: Any) -> dict[str, Any]:
    """What the bundles have to know of weights that `convert_checkpoint` has converted.

    Args:
        weights: of that function.
        network: as there.
        plan: of volumes, as it stands in the nnU-Net plan of the checkpoint's training, (z, y, x):
            ``spacing``, ``patch_size``, and of MambaClinix and U-Mamba ``strides``, three for each
            stage.
            ``intensity`` is, of CT, percentiles 0.5 and 99.5, mean and standard deviation of the
            foreground, in HU; else "z-score", or "nonzero z-score" of voxels that are not 0.
            ``axcodes`` is where these axes point to, by default SPL, which is (z, y, x) of a file
            in LPS, as most from DICOM are. Of Swin-UMamba, whose slices are (y, x), either none or
            all of ``spacing`` and ``patch_size``, two numbers each, and ``intensity``; axcodes are
            by default PLS, the last of them across the slices. None of them for other networks, nor
            for U-Mamba in 2D, which no bundle has.

    Raises:
        InputError: one is missing, is not as above, or is given where it has no use.
    """
    given = {name: value for name, value in plan.items() if value is not None}
    volumes = any(x.ndim == 5 for x in weights.values())
    slices = network == "swin_umamba"
    needed = _PLANNED.get(network, []) if volumes or slices else []
    for name, value in given.items():
        if not needed or name not in ("axcodes", *needed):
            raise InputError(
                f"{name} is {value}, for which a checkpoint of {network} like this one has no use; "
                "allowed is none."
            )
    if network not in _ENDS or (network == "umamba" and not volumes):
        return {}
    names, axis, last = _ENDS[network]
    first = next(name for name in names if name in weights)
    in_channels, out_channels = weights[first].shape[axis], weights[last].shape[0]
    settings: dict[str, Any] = {
        "in_channels": in_channels,
        "num_classes": max(2, out_channels),  # one channel is a sigmoid's
    }
    if network in _IN_2D:
        target, arguments_of = _IN_2D[network]
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        settings["network_def"] = {"_target_": target, **channels, **arguments_of(weights)}
    if not volumes and not slices:
        return settings | {"axes": [0, 2, 1]}
    if slices and not given.keys() & {*needed}:
        needed = []  # it may be of pictures, which have no such plan
    dims, number, order = (2, "two", "(y, x)") if slices else (3, "three", "(z, y, x)")
    stages = _number(weights, r"encoder\.(\d+)\.")
    for name in needed:
        value = given.get(name)
        if name == "intensity":
            given |= _intensity(value)
            continue
        strides = name == "strides"
        if not _are_rows(value if strides else [value], stages if strides else 1, dims):
            each = f" for each of {stages} stages" if strides else ""
            raise InputError(
                f"{name} is {value}; needed are {number} numbers above 0{each}, as they stand in "
                f"the nnU-Net plan of the checkpoint's training, {order}."
            )
    settings |= {"axcodes": "PLS" if slices else "SPL"} | given
    if network in _ARGUMENTS:
        target, arguments = _ARGUMENTS[network]
        settings["network_def"] = {
            "_target_": target,
            "in_channels": settings["in_channels"],
            "out_channels": settings["num_classes"],
            **({"strides": settings.pop("strides")} if "strides" in needed else {}),
            **arguments(weights, stages, settings["patch_size"]),
        }
    return settings


def _intensity(value: Any) -> dict[str, Any]:
    """The settings of nnU-Net's normalisation."""
    if isinstance(value, str) and value in _Z_SCORES:
        return {"modality": None, "intensity": z_score_intensity(_Z_SCORES[value])}
    numbers = isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
    if not numbers or len(value) != 4 or not (value[0] < value[1] and value[3] > 0):
        raise InputError(
            f"intensity is {value}; needed are, of CT, percentile_00_5, percentile_99_5, mean and "
            "std of the foreground, as they stand in the nnU-Net plan of the checkpoint's "
            "training, or z-score, or, where its use_mask_for_norm is true, nonzero z-score."
        )
    return {"modality": "CT", "intensity": ct_intensity(*value)}


def _are_rows(rows: Any, number: int, length: int) -> bool:
    return (
        isinstance(rows, (list, tuple))
        and len(rows) == number
        and all(isinstance(row, (list, tuple)) and len(row) == length for row in rows)
        and all(isinstance(x, (int, float)) and x > 0 for row in rows for x in row)
    )


def _number(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different things are counted where names begin with a pattern."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def _stages(weights: Mapping[str, Tensor], stages: int, block: str) -> dict[str, list]:
    """Channels and kernels of each stage."""
    shapes = [weights[f"encoder.{s}.{block}.conv1.conv.weight"].shape for s in range(stages)]
    return {
        "features": [width for width, *_ in shapes],
        "kernel_sizes": [list(kernel) for _, _, *kernel in shapes],
    }


def _mambaclinix(weights: Mapping[str, Tensor], stages: int, _: list[int]) -> dict[str, Any]:
    """The arguments of MambaClinix that its weights show."""
    layers: list[Any] = []
    for s in range(stages):
        layer = f"encoder.{s}.layer."
        order = None
        if f"{layer}scale" in weights:
            order = 1 + _number(weights, rf"encoder\.{s}\.layer\.gated\.widen\.(\d+)\.")
        layers.append("mamba" if f"{layer}mamba.D" in weights else order)
    return {**_stages(weights, stages, "block"), "layers": layers}


def _umamba(weights: Mapping[str, Tensor], stages: int, patch_size: list[int]) -> dict[str, Any]:
    """The arguments of UMamba in 3D that its weights, and the patch of their training, show."""
    layers = _number(weights, r"encoder\.(\d+)\.layer\.")
    down = [_number(weights, rf"encoder\.{s}\.blocks\.(\d+)\.") for s in range(stages)]
    up = [_number(weights, rf"decoder\.{i}\.blocks\.(\d+)\.") for i in range(stages - 1)]
    return {
        "spatial_dims": 3,
        "variant": "encoder" if layers > 1 else "bottleneck",
        "release": 1 if "stem.0.conv.weight" in weights else 2,
        **_stages(weights, stages, "blocks.0"),
        "blocks_per_stage": down,
        "blocks_per_decoder_stage": up,
        "input_size": list(patch_size),
        "deep_supervision": True,
    }


def _segmamba(weights: Mapping[str, Tensor], stages: int, _: list[int]) -> dict[str, Any]:
    """The arguments of SegMamba that its weights show."""
    return {
        "depths": [_number(weights, rf"encoder\.{s}\.blocks\.(\d+)\.") for s in range(stages)],
        "features": [len(weights[f"encoder.{s}.spatial.fuse.weight"]) for s in range(stages)],
        "hidden_size": len(weights["bottleneck.conv1.weight"]),
    }


_ARGUMENTS: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "mambaclinix": ("common.networks.MambaClinix", _mambaclinix),
    "segmamba": ("common.networks.SegMamba", _segmamba),
    "umamba": ("common.networks.UMamba", _umamba),
}


def _vss_encoder(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Blocks and channels of each stage of a `common.blocks.VSSEncoder`."""
    stages = range(_number(weights, r"encoder\.stages\.(\d+)\."))
    return {
        "depths": [_number(weights, rf"encoder\.stages\.{s}\.(\d+)\.") for s in stages],
        "features": [weights[f"encoder.stages.{s}.0.norm.weight"].shape[0] for s in stages],
    }


def _swin_umamba(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of SwinUMamba that its weights show."""
    mamba = "decoder.levels.0.project.weight" in weights
    return {"decoder": "mamba" if mamba else "convolution", **_vss_encoder(weights)}


def _vm_unet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of VMUNet that its weights show."""
    stages = range(_number(weights, r"decoder\.(\d+)\."))
    depths = [_number(weights, rf"decoder\.{i}\.blocks\.(\d+)\.") for i in stages]
    return {**_vss_encoder(weights), "decoder_depths": depths}


_IN_2D: dict[str, tuple[str, Callable[[Mapping[str, Tensor]], dict[str, Any]]]] = {
    "swin_umamba": ("common.networks.SwinUMamba", _swin_umamba),
    "vm_unet": ("common.networks.VMUNet", _vm_unet),
}
