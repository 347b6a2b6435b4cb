"""Checkpoints of nnU-Net's trainings with this package's trainers, for the bundles."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.utils import ensure_tuple

from ..checkpoints import check_setting, load_checkpoint, state_dict_in, without_wrappers
from ..data import find_cases
from ..errors import InputError, listed
from .plan import planned_intensity

# Readers that turn what they read, and to what.
_TURNED = {"NibabelIOWithReorient": "RAS", "SimpleITKIOWithReorient": "RAS"}


def convert_nnunet(checkpoint: str | Path, axcodes: str | None = None) -> OrderedDict[str, Any]:
    """The state dict of an nnU-Net training in 3D, with the settings by which bundles infer.

    These are of nnU-Net's plan: spacing, patch and network along its axes, and the intensities of
    its fingerprint. The network's trainer was one of `common.nnunet`'s.

    Args:
        checkpoint: nnU-Net's checkpoint_final.pth, or another of such a training.
        axcodes: where nnU-Net's axes point to. By default they are found: its reader turned the
            images, or the training images are where nnUNet_raw says and are stored alike.

    Returns:
        Names and tensors; the settings are its attribute ``settings``, as in a bundle's training.

    Raises:
        InputError: as `load_state_dict`; it is no checkpoint of such a training; bundles have no
            counterpart to its configuration; or the axes cannot be found.
    """
    content = load_checkpoint(checkpoint)
    converted = OrderedDict(without_wrappers(state_dict_in(content, checkpoint)))
    try:
        plans = content["init_args"]["plans"]
        settings = _settings(content, checkpoint)
        reader, forward, name = (
            plans[key] for key in ("image_reader_writer", "transpose_forward", "dataset_name")
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{checkpoint} is no checkpoint of a training by nnU-Net 2 ({error!r}); allowed is "
            "one, such as checkpoint_final.pth."
        ) from error
    settings["axcodes"] = axcodes or _axcodes(reader, forward, name)
    for id_, value in settings.items():
        check_setting(id_, value)
    converted.settings = settings  # type: ignore[attr-defined]  # as of a training
    return converted


def _settings(content: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """What inference needs to know, but for where the axes point to."""
    given, trainer = content["init_args"], content["trainer_name"]
    plans, dataset, name = given["plans"], given["dataset_json"], given["configuration"]
    planned = _configuration(plans, name)
    labels = {label: value for label, value in dataset["labels"].items() if label != "ignore"}
    if "network_def" not in given:
        raise InputError(
            f"{checkpoint} is of {trainer}, which does not say what its network is; allowed are "
            "checkpoints of the trainers that python -m common nnunet tells the folder of."
        )
    if len(planned["patch_size"]) != 3 or planned.get("previous_stage"):
        raise InputError(
            f"{checkpoint} is of the configuration {name}, which no bundle has a counterpart to: "
            "those in 2D resize images, and none takes another's masks; allowed are "
            "configurations in 3D without a stage before them."
        )
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        raise InputError(
            f"{checkpoint} is of regions, {labels}, for which no bundle resamples as nnU-Net does; "
            "allowed is one number for each label."
        )
    return {
        "modality": "CT" if planned["normalization_schemes"] == ["CTNormalization"] else None,
        "in_channels": len(dataset["channel_names"]),
        "num_classes": len(labels),
        "label_map": None,
        "ignore_label": dataset["labels"].get("ignore"),
        "spacing": list(planned["spacing"]),
        "patch_size": list(planned["patch_size"]),
        "intensity": planned_intensity(plans, planned),
        "network_def": given["network_def"],
        "label_names": sorted(labels, key=labels.__getitem__),
    }


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of a plan, with what it inherits."""
    found = plans["configurations"][name]
    parent = found.get("inherits_from")
    return {**(_configuration(plans, parent) if parent else {}), **found}


def _axcodes(reader: str, forward: list[int], dataset: str) -> str:
    """Where nnU-Net's axes point to: those of the files backwards, then as the plan orders them."""

    def ordered(stored: str) -> str:
        return "".join(stored[::-1][i] for i in forward)

    told = (
        f"--axcodes {ordered('LPS')} where they are LPS, as from DICOM, and --axcodes "
        f"{ordered('RAS')} where they are RAS"
    )
    return ordered(_TURNED.get(reader) or _stored(dataset, told))


def _stored(dataset: str, told: str) -> str:
    """Where the axes of a raw data set's images point to, as their files have them.

    Args:
        dataset: its name in nnUNet_raw.
        told: what to give where that is not found.

    Raises:
        InputError: they are not to be found, or not alike.
    """
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112  # nnU-Net's spelling
    folder = Path(raw, dataset) if raw else None
    if folder is None or not folder.is_dir():
        where = f"in {folder}" if folder else "nnUNet_raw is not set"
        raise InputError(
            f"The training images of {dataset} are not there to tell where their axes point to "
            f"({where}); give {told}."
        )
    found: dict[str, str] = {}
    for case in find_cases(folder).cases:
        for file in ensure_tuple(case["image"]):
            try:
                found.setdefault("".join(nib.aff2axcodes(nib.load(file).affine)), str(file))
            except Exception as error:
                raise InputError(
                    f"{file} does not tell where its axes point to ({error}); allowed is NIfTI. "
                    f"Give {told}."
                ) from error
    if len(found) != 1:
        kinds = listed(f"{codes} in {file}" for codes, file in sorted(found.items())) or "none"
        raise InputError(
            f"The training images of {dataset} are stored along several axes: {kinds}; allowed, "
            f"where bundles are to see what nnU-Net saw, is one. Give {told}, to turn all to it."
        )
    return next(iter(found))
