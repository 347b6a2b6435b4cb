"""The values of label maps' files, and the classes that they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..ignored import IGNORED

ROUNDING = 1e-3  # values of a label are this near to whole ones
_MANY = 1 << 16  # values from 0 to here are counted in one pass


class LabelValues:
    """Which values a label map's file may have, and which class each stands for.

    Args:
        num_classes: classes, from 2, the background among them; None allows all whole values.
        label_map: {value in the file: class}, several values to one class where wanted; None takes
            the values as classes. Keys and values may be text, as JSON has keys.
        ignore_label: the value in the file of voxels that count neither in losses nor in metrics;
            they become `IGNORED`.

    Raises:
        InputError: num_classes is below 2; label_map's classes are not 0 to num_classes - 1, each
            of them at least once; ignore_label is a class, or a key of label_map.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        label_map: Mapping[Any, Any] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise InputError(
                f"num_classes is {num_classes}; allowed are numbers from 2, of which the first is "
                "the background."
            )
        self.num_classes = num_classes
        self.ignore_label = (
            _whole("ignore_label", ignore_label) if ignore_label is not None else None
        )
        self.label_map = None if label_map is None else _whole_map(label_map)
        if self.label_map is not None:
            classes = sorted(set(self.label_map.values()))
            if classes != list(range(num_classes or len(classes))):
                raise InputError(
                    f"label_map is {label_map}, with the classes {_listed(classes)}; allowed are "
                    f"0 to {(num_classes or len(classes)) - 1}, the configuration's num_classes "
                    "being one more, each at least once."
                )
        if self.ignore_label is not None and self.ignore_label in self.allowed():
            raise InputError(
                f"ignore_label is {ignore_label}, which stands for a class as well; allowed is a "
                "value that does not, or another label_map."
            )

    def allowed(self) -> set[int]:
        """The values that stand for a class; none where all are allowed."""
        return set(self.label_map or range(self.num_classes or 0))

    def problem(self, values: Sequence[float]) -> str | None:
        """What is wrong with the values that a label has, if anything."""
        if broken := [
            v for v in values if not (math.isfinite(v) and abs(v - round(v)) <= ROUNDING)
        ]:
            return (
                f"has the values {_listed(broken)}; allowed are whole numbers, or what is within "
                f"{ROUNDING:g} of them."
            )
        if self.num_classes is None and self.label_map is None:
            return None
        known = self.allowed() | ({self.ignore_label} if self.ignore_label is not None else set())
        unknown = sorted({round(v) for v in values} - known)
        if not unknown:
            return None
        if self.label_map is not None:
            allowed = f"are {_listed(sorted(known))}, the configuration's label_map's keys"
        else:
            allowed = (
                f"are the classes 0 to {len(self.allowed()) - 1}, the configuration's num_classes "
                "being one more"
            )
        ignoring = "" if self.ignore_label is None else f" and its ignore_label {self.ignore_label}"
        return (
            f"has the values {_listed(unknown)}; allowed {allowed}{ignoring}; others need an entry "
            "in label_map, or to be the ignore_label."
        )

    def apply(self, label: Tensor) -> Tensor:
        """The classes of a label map whose values have no `problem`; the same where it is one."""
        whole = _signed(label).round()
        changes = {old: new for old, new in (self.label_map or {}).items() if old != new}
        if self.ignore_label is not None:
            changes[self.ignore_label] = IGNORED
        classes = whole.clone() if changes else whole
        for old, new in changes.items():
            classes[whole == old] = new
        return classes


def count_values(label: Tensor) -> dict[float, int]:
    """The values of a label map and how many voxels have each, smallest first."""
    flat = _signed(label).detach().as_subclass(Tensor).flatten()
    whole = flat.round()
    if flat.numel() and bool(((flat - whole).abs() <= ROUNDING).all()):
        if whole.min() >= 0 and whole.max() < _MANY:
            counts = sum(
                (torch.bincount(part.int(), minlength=_MANY) for part in whole.split(1 << 24)),
                torch.zeros(_MANY, dtype=torch.int64),
            )
            return {float(v): int(counts[v]) for v in counts.nonzero().flatten()}
        flat = whole
    values, numbers = flat[~flat.isnan()].unique(return_counts=True)
    counted = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    unknown = int(flat.isnan().sum())
    return counted | ({math.nan: unknown} if unknown else {})


def _signed(label: Tensor) -> Tensor:
    """In a type that has room for `IGNORED`."""
    return label.float() if label.dtype in (torch.bool, torch.uint8) else label


def _whole_map(label_map: Mapping[Any, Any]) -> dict[int, int]:
    if not isinstance(label_map, Mapping) or not label_map:
        raise InputError(
            f"label_map is {label_map!r}; allowed is {{value: class, ...}}, such as "
            "{0: 0, 1: 0, 2: 1}."
        )
    return {_whole("a key of label_map", k): _whole("a class", v) for k, v in label_map.items()}


def _whole(name: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError as error:
        raise InputError(f"{name} is {value!r}; allowed are whole numbers.") from error
    return number


def _listed(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.7g}" for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")
