"""nnU-Net's plan for a data set, as overrides for a bundle's training.

The fingerprint and the plan are those of the installed nnunetv2 (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z); what is done here is to hand it the cases as the bundle's training
loads them, and to say its plan in MONAI's words.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import ensure_tuple
from numpy.typing import NDArray
from tqdm import tqdm

from ..checkpoints import ct_intensity, z_score_intensity
from ..data import check_output_folder, find_cases
from ..data.label_values import count_values
from ..data.layouts import Case, DataSet
from ..errors import InputError, first_line, how_to_install, input_error_in, listed, nearest
from ..files import read_json, write_json

_NAME = "Dataset001_Planned"
_STEPS = "train#preprocessing#transforms"
_PIXELS = 999.0, 1.0, 1.0  # nnU-Net's spacing of a picture, whose pixels have no size
_SIZES = ("patch_size", "image_size")  # what a bundle calls what its network sees at once
_PER_CASE = ("patches_per_case", "slices_per_case")


class Training(NamedTuple):
    """What is planned for.

    Attributes:
        config: the bundle's train.json with what was given, and channels and classes of the cases.
        given: overrides of it, which count in place of what would be planned.
        cases: those that are looked at.
    """

    config: ConfigParser
    given: Mapping[str, Any]
    cases: Sequence[Case]


class Plan(NamedTuple):
    """What was planned.

    Attributes:
        overrides: values of ids of the bundle's train.json.
        cases: of which the fingerprint is: those for training.
        of: cases that the data set has.
    """

    overrides: dict[str, Any]
    cases: int
    of: int


def write_plan(
    bundle: str | Path,
    dataset_dir: str | Path,
    output: str | Path,
    gpu_memory: float = 8.0,
    **overrides: Any,
) -> Plan:
    """Let nnU-Net plan for a data set, write the plan as overrides for a bundle, and return it.

    Only ids that the bundle's train.json has are written: channels, classes, intensities, the
    batch, what the network sees at once (`patch_size` or `image_size`, in multiples of what the
    bundle's metadata asks for), spacing, and the stages of a network that has nnU-Net's. Further:

    - Where the spacing in plane is relative to each scan's own (`in_plane_factor`), that stays, and
      the patch is planned for the grid that it makes; `slice_spacing` is planned unless it is None.
    - A 2D network gets nnU-Net's 2D configuration, of slices across the last axis: the size that
      whole slices or pictures are resized to is the planned patch's, unless the bundle has a
      spacing, which is planned too. The batch is of slices.

    nnU-Net's messages and progress go to stderr.

    Args:
        bundle: the bundle's folder.
        dataset_dir: see `find_cases`; the cases are those that training would train on, so that
            others leave no trace in the plan.
        output: the JSON file to write, to be given after the bundle's train.json.
        gpu_memory: GB that nnU-Net's own U-Net may fill in training.
        overrides: what training will be given as well, ids of train.json: which cases count
            (`fold`, `split_file`, ...), what labels are (`label_map`, `ignore_label`), and what is
            in place of what would be planned (`spacing`, `patch_size`, ...). What belongs to the
            weights is written into the plan, so that it is said once. `modality` names every
            channel; without, the data set's dataset.json does.

    Raises:
        InputError: nnunetv2 is not installed; the bundle or the data set cannot be read, or its
            modality not be told; an argument is not as above; or there is no plan of this data set
            for the bundle.
    """
    if find_spec("nnunetv2") is None:
        raise InputError(
            f"Planning needs nnU-Net, which is not installed: {how_to_install('plan')}, or "
            "pip install nnunetv2."
        )
    if gpu_memory <= 0:
        raise InputError(f"gpu_memory is {gpu_memory}; allowed are GB above 0.")
    check_output_folder(Path(output).parent)
    config = _config(Path(bundle), overrides | {"dataset_dir": str(dataset_dir)})
    data = find_cases(dataset_dir, config.get_parsed_content("typed#cases"))
    cases: list[Case] = config.get_parsed_content("train#dataset#data")
    given = dict(overrides)
    if given.get("ignore_label") is None and data.ignore_label is not None:
        given["ignore_label"] = config["ignore_label"] = data.ignore_label
    config["in_channels"] = _in_channels(config, cases, given)
    config["num_classes"] = _num_classes(config, cases, data, given)
    names = _channel_names(config, data, given)
    with TemporaryDirectory() as folder:
        plans = nnunet_plans(Training(config, given, cases), names, gpu_memory, Path(folder))
    written = plan_overrides(plans, config, given, _multiples(Path(bundle)))
    try:
        write_json(output, written)
    except OSError as error:
        raise InputError(f"The plan {output} cannot be written ({error}).") from error
    return Plan(written, len(cases), len(data.cases))


def _config(bundle: Path, overrides: Mapping[str, Any]) -> ConfigParser:
    path = bundle / "configs/train.json"
    if not path.is_file():
        raise InputError(
            f"There is no {path}; needed is a bundle's folder, such as "
            "bundles/liver_ct_lightm_unet_segmentation."
        )
    content = read_json(path)
    config = ConfigParser(content)
    if unknown := [id_ for id_ in overrides if id_ not in config]:
        first = unknown[0].partition("#")[0]
        raise InputError(f"{path} has no {unknown[0]}{nearest(first, content)}.")
    config.update(dict(overrides))
    return config


def _multiples(bundle: Path) -> list[int]:
    """Of how many voxels along each axis an image is to be a multiple, by the bundle's metadata."""
    formats = read_json(bundle / "configs/metadata.json")["network_data_format"]
    shape = formats["inputs"]["image"]["spatial_shape"]
    found = (re.match(r"(\d+)\*n", str(size)) for size in shape)
    return [int(match[1]) if match else 1 for match in found]


def _steps(config: ConfigParser) -> int:
    """How many steps of the preprocessing come before intensities and voxels are changed."""
    steps = config[_STEPS]
    return next(i for i, x in enumerate(steps) if isinstance(x, str) or "mode" in x)


def _loaded(config: ConfigParser, key: str, file: Any) -> Any:
    """An image or a label map by itself, (channels, ...), as training loads it."""
    item = {key: file}
    for i in range(2):
        step = config.get_parsed_content(f"{_STEPS}#{i}")
        step.allow_missing_keys = True
        item = step(item)
    return item[key]


def _in_channels(config: ConfigParser, cases: Sequence[Case], given: Mapping[str, Any]) -> int:
    if "in_channels" in given:
        return int(given["in_channels"])
    return len(_loaded(config, "image", cases[0]["image"]))


def _num_classes(
    config: ConfigParser, cases: Sequence[Case], data: DataSet, given: Mapping[str, Any]
) -> int:
    """One more than the largest class: of label_map, dataset.json, or else of the label maps."""
    if "num_classes" in given:
        return int(given["num_classes"])
    if label_map := config["label_map"]:
        return 1 + max(int(value) for value in label_map.values())
    if data.label_values:
        return 1 + max(int(np.max(value)) for value in data.label_values.values())
    values = set[float]()
    for case in tqdm(cases, desc="Counting classes", unit="case"):
        values |= count_values(_loaded(config, "label", case["label"])).keys()
    values -= {config["ignore_label"]}
    merges = any("MergeMasksd" in str(step) for step in config[_STEPS])
    if merges and len(values) <= 2:
        return 2  # masks, whatever their values
    return 1 + int(max(filter(math.isfinite, values), default=0))


def _channel_names(config: ConfigParser, data: DataSet, given: Mapping[str, Any]) -> dict[str, str]:
    """What each channel is called, by which nnU-Net knows CT from values without a unit."""
    channels, names = config["in_channels"], list(data.channel_names or [])
    if given.get("modality") is not None:
        names = [str(given["modality"])] * channels
    elif "modality" not in config and len(names) != channels:
        names = ["picture"] * channels
    if len(names) != channels:
        raise InputError(
            f"{config['dataset_dir']} names {len(names)} channels of the images' {channels}; name "
            "their modality by --modality CT or --modality MR."
        )
    return {str(i): name for i, name in enumerate(names)}


def nnunet_plans(
    training: Training,
    channel_names: Mapping[str, str],
    gpu_memory: float,
    folder: Path,
    fingerprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plans of nnU-Net's default planner, as it saves them.

    Args:
        training: what is planned for.
        channel_names: as nnU-Net's dataset.json has them: {"0": "CT"}.
        gpu_memory: GB that nnU-Net's own U-Net may fill in training.
        folder: an empty folder, or one without nnU-Net's, to work in.
        fingerprint: the cases'; by default nnU-Net's extractor takes it.

    Raises:
        InputError: a case cannot be read, or no foreground is in any.
    """
    config, given, cases = training
    classes = range(config.get_parsed_content("num_classes"))
    # nnU-Net asks for the files of an example, which its own readers never see.
    example = {"images": [str(file) for file in ensure_tuple(cases[0]["image"])], "label": ""}
    description = {
        "channel_names": dict(channel_names),
        "labels": {f"class {i}" if i else "background": i for i in classes},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",  # whose axes are as `_Reader`'s
        "dataset": {"case": example},
    }
    raw, preprocessed = folder / "raw", folder / "preprocessed"
    for name in (raw, preprocessed):
        (name / _NAME).mkdir(parents=True)
    (raw / _NAME / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed}
    with _environment(folders), redirect_stdout(sys.stderr):
        from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
        from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner

        if fingerprint is None:
            processes = min(8, os.cpu_count() or 1, len(cases))
            extractor = fingerprint_extractor.DatasetFingerprintExtractor(_NAME, processes)
            extractor.dataset = {str(i): {"images": [c], "label": c} for i, c in enumerate(cases)}
            reader = partial(_Reader, json.dumps(config.config), _steps(config))
            # It looks for readers among its own files alone.
            find = "determine_reader_writer_from_dataset_json"
            with patch.object(fingerprint_extractor, find, lambda *_: reader):
                _extract(extractor)
        else:
            path = preprocessed / _NAME / "dataset_fingerprint.json"
            path.write_text(json.dumps(fingerprint), encoding="utf-8")
        planner = default_experiment_planner.ExperimentPlanner(
            _NAME, gpu_memory, suppress_transpose=_dims(config) == 2
        )
        target = planner.determine_fullres_target_spacing().tolist()
        planner.overwrite_target_spacing = _working_spacing(config, given, target)
        planner.plan_experiment()
    plans: dict[str, Any] = json.loads((preprocessed / _NAME / "nnUNetPlans.json").read_text())
    return plans


def _extract(extractor: Any) -> None:
    try:
        extractor.run()
    except Exception as error:
        if sentence := input_error_in(error):
            raise InputError(sentence) from error
        raise InputError(
            f"nnU-Net cannot take the data set's fingerprint ({first_line(error)}); allowed are "
            "images that are not 0 everywhere, with some foreground among them."
        ) from error


class _Reader:
    """A reader of nnU-Net's, of cases as a bundle's training loads, checks and turns them.

    Axes are nnU-Net's: (channels, z, y, x), a picture being one slice. What is ignored is no
    foreground.

    Args:
        config: the bundle's training, JSON.
        steps: how many of its preprocessing.
    """

    def __init__(self, config: str, steps: int) -> None:
        self.chain = _chain(config, steps)
        self.label: NDArray[np.float32] | None = None

    def read_images(self, cases: list[Case]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        item = self.chain(dict(cases[0]))
        image, self.label = item["image"], _as_nnunets(item["label"])
        spacing = image.pixdim.tolist()[::-1] if image.ndim == 4 else _PIXELS
        return _as_nnunets(image), {"spacing": spacing}

    def read_seg(self, case: Case) -> tuple[NDArray[np.float32], dict[str, Any]]:
        assert self.label is not None
        return self.label, {}


@cache
def _chain(config: str, steps: int) -> Compose:
    parser = ConfigParser(json.loads(config))
    return Compose([parser.get_parsed_content(f"{_STEPS}#{i}") for i in range(steps)])


def _as_nnunets(volume: Any) -> NDArray[np.float32]:
    values = volume.numpy(force=True).astype(np.float32, copy=False)
    values = values.transpose(0, *range(values.ndim - 1, 0, -1))
    return values if values.ndim == 4 else values[:, None]


def _dims(config: ConfigParser) -> int:
    """Axes of what the bundle's network sees at once."""
    return len(config.get_parsed_content(_size(config)))


def _size(config: ConfigParser) -> str:
    return next(id_ for id_ in _SIZES if id_ in config)


def _working_spacing(
    config: ConfigParser, given: Mapping[str, Any], target: list[float]
) -> list[float]:
    """The spacing (z, y, x) that a patch is planned for, where `target` is nnU-Net's."""
    if given.get("spacing") is not None:
        mm = [float(length) for length in given["spacing"][::-1]]
        return [*target[: len(target) - len(mm)], *mm]  # of slices two, within them
    if "in_plane_factor" not in config:
        return target
    factor = config.get_parsed_content("in_plane_factor")
    slices = given.get("slice_spacing") or target[0]
    return [float(slices), *(mm / factor for mm in target[1:])]


def plan_overrides(
    plans: Mapping[str, Any],
    config: ConfigParser,
    given: Mapping[str, Any],
    multiples: Sequence[int],
) -> dict[str, Any]:
    """nnU-Net's plans as values of ids of a bundle's training, and what was given in their place.

    nnU-Net's axes are those of its reader, (z, y, x), in the order of its transpose_forward; those
    of MONAI, and of the result, are (x, y, z). Both are of images that were turned as the bundle
    turns them.

    Args:
        plans: nnU-Net's.
        config: the bundle's training, with channels and classes of the data set.
        given: overrides that count in place of what is planned.
        multiples: of how many voxels along each axis the patch is to be a multiple, unless the
            network has the planned stages.

    Raises:
        InputError: there is no plan in 3D for a 3D network, or channels need normalisations that
            no single transform of MONAI does, or the bundle's other steps cannot do with.
    """
    dims = _dims(config)
    planned = plans["configurations"].get("3d_fullres" if dims == 3 else "2d")
    if planned is None:
        raise InputError("nnU-Net's plan for this data set is 2D; allowed are volumes.")

    def monai_axes(values: Sequence) -> list:
        back = plans["transpose_backward"] if dims == 3 else range(2)
        return [values[i] for i in back][::-1]

    architecture = planned["architecture"]["arch_kwargs"]
    spacing, size = monai_axes(planned["spacing"]), monai_axes(planned["patch_size"])
    stages = {
        "network_def#features": architecture["features_per_stage"],
        "network_def#strides": [monai_axes(stride) for stride in architecture["strides"]],
        "network_def#kernel_sizes": [monai_axes(k) for k in architecture["kernel_sizes"]],
    }
    if "network_def#strides" not in config:  # the network has its own
        stages = {}
        size = [math.ceil(n / m) * m for n, m in zip(size, multiples, strict=True)]
    per_case = next((config.get_parsed_content(id_) for id_ in _PER_CASE if id_ in config), 1)
    of_plan = {
        "in_channels": config["in_channels"],
        "num_classes": config["num_classes"],
        "spacing": spacing,
        "slice_spacing": config.get("slice_spacing") and spacing[-1],
        _size(config): size,
        "batch_size": max(1, round(planned["batch_size"] / per_case)),
        "batch_dice": planned["batch_dice"],
        "intensity": given.get("intensity") or planned_intensity(plans, planned),
        **stages,
    }
    _check_used(of_plan["intensity"], config)
    with_weights = {name.split("#")[0] for name in config["settings#names"]}
    return {id_: value for id_, value in of_plan.items() if id_ in config} | {
        id_: value
        for id_, value in given.items()
        if id_ in of_plan or id_.split("#")[0] in with_weights
    }


def _check_used(intensity: Mapping[str, Any], config: ConfigParser) -> None:
    """See that it says what other steps of the config take from it, such as air's value."""
    others = json.dumps({id_: value for id_, value in config.config.items() if id_ != "intensity"})
    used = set(re.findall(r"@intensity(?:#|::)(\w+)", others))  # MONAI writes :: for #
    if missing := sorted(used - intensity.keys()):
        raise InputError(
            f"nnU-Net normalises this data set by {intensity['_target_']}, which has no "
            f"{listed(missing)} for the bundle to pad with; allowed is one channel of CT."
        )


def planned_intensity(plans: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's normalisation; within non-zero voxels, where it says so, of each channel's own."""
    schemes = planned["normalization_schemes"]
    if schemes == ["CTNormalization"]:
        seen = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = seen["percentile_00_5"], seen["percentile_99_5"]
        if low == high:
            raise InputError(
                f"The foreground has the value {low:g} nearly everywhere; allowed is one with "
                "contrast."
            )
        return ct_intensity(low, high, seen["mean"], seen["std"])
    if set(schemes) == {"ZScoreNormalization"}:
        return z_score_intensity(nonzero=any(planned["use_mask_for_norm"]))
    raise InputError(
        f"nnU-Net normalises this data set's channels by {', '.join(schemes)}; allowed are one "
        "channel of CT, or channels of other modalities."
    )


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
