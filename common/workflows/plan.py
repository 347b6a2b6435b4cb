"""nnU-Net's plan for a data set, as overrides for a bundle's configs.

The fingerprint and the plan are those of the installed nnunetv2 (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z); what is done here is to hand it the data set, and to say its plan
in MONAI's words.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from ..data import check_output_folder, find_cases
from ..data.formats import format_of
from ..data.layouts import Case, DataSet, require_cases
from ..errors import InputError, first_line
from ..files import write_json

_NAME = "Dataset001_Planned"
_NIFTI = "NIfTI"  # of formats.FORMATS


def write_plan(
    dataset_dir: str | Path,
    output: str | Path,
    gpu_memory: float = 8.0,
    modality: str | None = None,
) -> dict[str, Any]:
    """Let nnU-Net plan for a data set, write the plan as overrides, and return these.

    nnU-Net's messages and progress go to stderr.

    Args:
        dataset_dir: see `find_cases`; all its labelled cases count, as for nnU-Net.
        output: the JSON file to write, to be given after a bundle's train.json or inference.json.
        gpu_memory: GB that nnU-Net's own U-Net may fill in training.
        modality: "CT", or another for channels whose values have no unit; by default what the
            data set's dataset.json says.

    Raises:
        InputError: nnunetv2 is not installed; the data set cannot be read, or its modality not be
            told; an argument is not as above; or there is no plan of this data set for the bundle.
    """
    if find_spec("nnunetv2") is None:
        raise InputError(
            "Planning needs nnU-Net, which is not installed: pip install '.[plan]' in this "
            "project's folder, or pip install nnunetv2."
        )
    if gpu_memory <= 0:
        raise InputError(f"gpu_memory is {gpu_memory}; allowed are GB above 0.")
    check_output_folder(Path(output).parent)
    with TemporaryDirectory() as folder:
        description = _describe(Path(dataset_dir), modality, Path(folder))
        plans = nnunet_plans(description, gpu_memory, Path(folder))
    overrides = plan_overrides(plans, description)
    try:
        write_json(output, overrides)
    except OSError as error:
        raise InputError(f"The plan {output} cannot be written ({error}).") from error
    return overrides


def nnunet_plans(
    description: Mapping[str, Any],
    gpu_memory: float,
    folder: Path,
    fingerprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plans of nnU-Net's default planner, as it saves them.

    Args:
        description: nnU-Net's dataset.json, with the paths of the cases under "dataset".
        gpu_memory: GB that nnU-Net's own U-Net may fill in training.
        folder: an empty folder, or one without nnU-Net's, to work in.
        fingerprint: the data set's; by default nnU-Net's extractor takes it from the files.

    Raises:
        InputError: nnU-Net cannot read a file.
    """
    raw, preprocessed = folder / "raw", folder / "preprocessed"
    for name in (raw, preprocessed):
        (name / _NAME).mkdir(parents=True)
    (raw / _NAME / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed}
    with _environment(folders), redirect_stdout(sys.stderr):
        from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
        from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner

        if fingerprint is None:
            processes = min(8, os.cpu_count() or 1, len(description["dataset"]))
            try:
                fingerprint_extractor.DatasetFingerprintExtractor(_NAME, processes).run()
            except Exception as error:
                raise InputError(
                    f"nnU-Net cannot take the data set's fingerprint ({first_line(error)}); "
                    "allowed are complete images, each with a label map of its size and some "
                    "foreground among them."
                ) from error
        else:
            path = preprocessed / _NAME / "dataset_fingerprint.json"
            path.write_text(json.dumps(fingerprint), encoding="utf-8")
        planner = default_experiment_planner.ExperimentPlanner(_NAME, gpu_memory)
        planner.plan_experiment()
    plans: dict[str, Any] = json.loads((preprocessed / _NAME / "nnUNetPlans.json").read_text())
    return plans


def plan_overrides(plans: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's plans as values of ids that both train.json and inference.json have.

    nnU-Net's axes are those of its reader, (z, y, x), in the order of its transpose_forward; those
    of MONAI, and of the result, are (x, y, z). Both are of images that were turned to RAS.

    Raises:
        InputError: there is no plan in 3D, or channels need normalisations that no single
            transform of MONAI does.
    """
    planned = plans["configurations"].get("3d_fullres")
    if planned is None:
        raise InputError("nnU-Net's plan for this data set is 2D; allowed are volumes.")

    def monai_axes(values: Sequence) -> list:
        return [values[i] for i in plans["transpose_backward"]][::-1]

    architecture = planned["architecture"]["arch_kwargs"]
    return {
        "in_channels": len(description["channel_names"]),
        "num_classes": len(description["labels"]),
        "spacing": monai_axes(planned["spacing"]),
        "patch_size": monai_axes(planned["patch_size"]),
        "batch_size": planned["batch_size"],
        "batch_dice": planned["batch_dice"],
        "intensity": _intensity(plans, planned),
        "network_def#features": architecture["features_per_stage"],
        "network_def#strides": [monai_axes(stride) for stride in architecture["strides"]],
        "network_def#kernel_sizes": [monai_axes(k) for k in architecture["kernel_sizes"]],
    }


def _intensity(plans: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    schemes = planned["normalization_schemes"]
    if schemes == ["CTNormalization"]:
        seen = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = seen["percentile_00_5"], seen["percentile_99_5"]
        mean, std = seen["mean"], max(seen["std"], 1e-8)
        return {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": (low - mean) / std,
            "b_max": (high - mean) / std,
            "clip": True,
        }
    if set(schemes) == {"ZScoreNormalization"}:
        return {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "nonzero": any(planned["use_mask_for_norm"]),
            "channel_wise": True,
        }
    raise InputError(
        f"nnU-Net normalises this data set's channels by {', '.join(schemes)}; allowed are one "
        "channel of CT, or channels of other modalities."
    )


def _describe(root: Path, modality: str | None, folder: Path) -> dict[str, Any]:
    """nnU-Net's dataset.json of a data set; channels of a 4D file are written to `folder`."""
    data = require_cases(find_cases(root), root)
    names = data.channel_names or []
    dataset = {}
    for i, case in enumerate(tqdm(data.cases, desc="Looking at the cases", unit="case")):
        images, label = _nifti_files(case)
        if len(images) == 1:
            images = _channel_files(images[0], folder / f"case_{i}")
        absolute = [str(Path(file).absolute()) for file in images]
        dataset[f"case_{i:05d}"] = {"images": absolute, "label": str(Path(label).absolute())}
    channels = len(dataset["case_00000"]["images"])
    if modality is not None:
        names = [modality] * channels
    if len(names) != channels:
        raise InputError(
            f"{root} names {len(names)} channels of the images' {channels}; name their modality "
            "by --modality CT or --modality MR."
        )
    labels = range(_num_classes(data))
    return {
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": {"background" if i == 0 else f"class {i}": i for i in labels},
        "numTraining": len(data.cases),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",  # to RAS, as the bundles do
        "dataset": dataset,
    }


def _nifti_files(case: Case) -> tuple[list[str], str]:
    """The files of an image and of its label, as nnU-Net's reader that turns to RAS takes them."""
    images, labels = list(ensure_tuple(case["image"])), list(ensure_tuple(case["label"]))
    for file in (*images, *labels):
        found = format_of(file)
        if found is None or found.name != _NIFTI or len(labels) > 1:
            raise InputError(
                f"{file} is not for nnU-Net to plan with; allowed are images of {_NIFTI} with one "
                "label map each."
            )
    return images, labels[0]


def _channel_files(file: str, folder: Path) -> list[str]:
    """A file of one channel as it is; of a 4D one, a file for each channel."""
    try:
        image = nib.load(file)
        if image.ndim < 4:
            return [file]
        folder.mkdir()
        paths = [str(folder / f"{c}.nii") for c in range(image.shape[3])]
        for path, channel in zip(paths, nib.four_to_three(image), strict=True):
            nib.save(channel, path)
    except Exception as error:
        raise InputError(
            f"The image {file} cannot be read ({first_line(error)}); allowed are complete files."
        ) from error
    return paths


def _num_classes(data: DataSet) -> int:
    """One more than the largest class that dataset.json lists, or else that a label map has."""
    if data.label_values:
        return 1 + max(int(np.max(value)) for value in data.label_values.values())
    largest = 0
    for case in tqdm(data.cases, desc="Counting classes", unit="case"):
        largest = max(largest, int(np.max(nib.load(case["label"]).dataobj)))
    return 1 + largest


@contextmanager
def _environment(variables: Mapping[str, str | Path]) -> Iterator[None]:
    """nnU-Net takes its folders from environment variables, and so do its worker processes."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
