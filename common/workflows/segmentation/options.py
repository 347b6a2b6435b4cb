"""What a user chooses, and what of it the bundle's inference config is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import InputError, check_switches, nearest

_FAST = 0.25  # of a window that overlaps the next one: of a large volume a third of the windows
# What is set here, or is of no account here.
_OURS = (
    *("bundle_root", "dataset_dir", "output_dir", "datalist", "masks", "probability_maps", "typed"),
    *("checkpoint", "device", "strict", "overwrite", "handlers", "evaluator", "run", "dataset"),
    "dataloader",
)
_SWITCHES = (
    *("fast", "flips", "preview", "statistics", "dicom_seg", "rtstruct", "ml", "force_split"),
    *("any_modality", "overwrite"),
)
_WINDOWS = ("common.inferers.BoundedSlidingWindowInferer", "common.inferers.BoundedSliceInferer")
_IN_PARTS = (*_WINDOWS, "common.transforms.InvertedLabelsd")


@dataclass(frozen=True)
class Options:
    """The arguments of `segment` that are about each study.

    Raises:
        InputError: a switch is none, or there is no such device.
    """

    checkpoint: list[str] | None = None
    device: str = "auto"
    fast: bool = False
    flips: bool = False
    preview: bool = False
    statistics: bool = False
    dicom_seg: bool = False
    rtstruct: bool = False
    ml: bool = True
    roi_subset: list[str] | None = None
    force_split: bool = False
    any_modality: bool = False
    overwrite: bool = True
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_switches(**{name: getattr(self, name) for name in _SWITCHES})
        if self.device not in (allowed := list(_devices())):
            raise InputError(
                f"device is {self.device!r}; allowed on this machine are {', '.join(allowed)}."
            )

    @property
    def dicom(self) -> list[str]:
        """What is asked for that refers to a DICOM series."""
        return [name for name in ("dicom_seg", "rtstruct") if getattr(self, name)]


def _devices() -> Iterable[str]:
    yield from ("auto", "cpu")
    if torch.cuda.is_available():
        yield "cuda"
        yield from (f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        yield "xpu"


def config_overrides(options: Options, bundle: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of an inference config and their values, that are what the options ask for.

    Args:
        options: fast lowers `overlap`, flips is `test_time_flips`, any_modality takes `modality`
            away; device is `device`. Of the rest here are the overrides alone.
        bundle: its name, for sentences.
        config: the inference config.

    Raises:
        InputError: the config has no id that an option or an override is about, or the id is one of
            those that are set here.
    """
    for id_ in options.overrides:
        name = id_.partition("#")[0]
        if name in _OURS:
            raise InputError(
                f"{id_} is given, which segment sets itself; allowed are its own options, and "
                f"other ids of {bundle}'s inference.json."
            )
        if name not in config:
            known = [*_SWITCHES, *(key for key in config if key not in _OURS)]
            raise InputError(
                f"segment has no option {id_}, and {bundle}'s inference.json has no such id"
                f"{nearest(name, known)}."
            )
    given: dict[str, Any] = {}
    if options.device != "auto":
        given["device"] = options.device
    for switch, id_, value in (
        ("fast", "overlap", _FAST),
        ("flips", "test_time_flips", True),
    ):
        if not getattr(options, switch):
            continue
        if id_ not in config:
            raise InputError(
                f"{switch} is True, and {bundle}'s inference.json has no {id_} to set; allowed "
                "there is False."
            )
        given[id_] = value
    if options.any_modality and "modality" in config:
        given["modality"] = None
    return given | options.overrides


def split(config: Any) -> bool:
    """Have an inferer and what undoes preprocessing work part by part, whatever the size.

    What is gathered of a volume is on disk then, as it else is from 256 MiB on.

    Returns:
        Whether the config has windows, without which there are no parts.
    """
    found = False
    if isinstance(config, dict):
        found = config.get("_target_") in _WINDOWS
        if config.get("_target_") in _IN_PARTS:
            config["in_memory"] = 0
    if isinstance(config, (dict, list)):
        for part in config.values() if isinstance(config, dict) else config:
            found |= split(part)
    return found


def chosen(roi_subset: Iterable[str] | None, classes: Mapping[str, int]) -> dict[str, int]:
    """Those of a bundle's classes that are wanted; None is all.

    Raises:
        InputError: one is no class of it.
    """
    if roi_subset is None:
        return dict(classes)
    for name in (wanted := list(roi_subset)):
        if name not in classes:
            raise InputError(
                f"roi_subset has {name!r}, which is no class of these weights"
                f"{nearest(name, classes)}."
            )
    return {name: value for name, value in classes.items() if name in wanted}
