"""What a dataset.json says of its data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_json
from .types import DataSet


def with_stated(data: DataSet, stated: Mapping[str, Any], path: Path, count: int) -> DataSet:
    """A data set with the names of its classes and channels; of numTraining it has `count` cases.

    Raises:
        InputError: "labels" has neither the form of the Decathlon nor that of nnU-Net, or
            "channel_names" or "modality" holds no names.
    """
    values = _label_values(stated.get("labels"), path)
    ignore = values.pop("ignore", None) if values else None
    if ignore is not None and not isinstance(ignore, int):
        raise InputError(f'{path} has the label "ignore" {ignore}; allowed is one whole number.')
    names = _channel_names(stated, path)
    notes, said = list(data.notes), stated.get("numTraining")
    if said is not None and str(said) != str(count):
        notes.append(f"{path} says numTraining {said}, and cases for training are {count}.")
    return data._replace(
        label_values=values,
        ignore_label=ignore,
        channel_names=names or None,
        notes=notes,
    )


def _channel_names(stated: Mapping[str, Any], path: Path) -> list[str]:
    key = "channel_names" if stated.get("channel_names") else "modality"
    found = stated.get(key) or []
    names = list(found.values()) if isinstance(found, dict) else found
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f'{path} has {key} {found}; allowed are {{"0": "CT"}}, with a name for each channel, '
            'and ["CT"].'
        )
    return names


def label_names(
    dataset_dir: str | Path,
    cases_file: str | Path | None = None,
    label_map: Mapping[Any, Any] | None = None,
) -> list[str] | None:
    """Names of the classes 0, 1, ..., where the data set's dataset.json has one for each.

    None where it has not, where cases are a file's or classes a `label_map`'s, and for regions.

    Raises:
        InputError: dataset.json cannot be read, or its "labels" are of another form.
    """
    path = Path(dataset_dir) / "dataset.json"
    if cases_file is not None or label_map is not None or not path.is_file():
        return None
    values = _label_values(read_json(path).get("labels"), path) or {}
    named = {str(value): name for name, value in values.items() if name != "ignore"}
    classes = [str(i) for i in range(len(named))]
    return [named[i] for i in classes] if named and named.keys() == {*classes} else None


def named_classes(
    dataset_dir: str | Path,
    cases_file: str | Path | None = None,
    label_map: Mapping[Any, Any] | None = None,
) -> dict[str, list[int]] | None:
    """The classes of `label_names` but the background, each with its value; None as there."""
    names = label_names(dataset_dir, cases_file, label_map) or []
    return {name: [value] for value, name in enumerate(names) if value} or None


def _label_values(labels: Any, path: Path) -> dict[str, int | list[int]] | None:
    """Names and values, of {"1": "liver"} as the Decathlon has them or {"liver": 1}, nnU-Net's."""
    if not labels:
        return None
    try:
        if all(isinstance(name, str) for name in labels.values()):
            named = [(name, int(value)) for value, name in labels.items()]
            doubled = len({name for name, _ in named}) < len(named)
            return {f"{name} {value}" if doubled else name: value for name, value in named}
        return {
            str(name): [_whole(v) for v in value] if isinstance(value, list) else _whole(value)
            for name, value in labels.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} has labels {labels}; allowed are {{"0": "background", "1": "liver"}} and '
            '{"background": 0, "liver": 1}, or lists of values for regions.'
        ) from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)
