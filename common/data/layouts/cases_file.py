"""A list of cases that somebody wrote: JSON or CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError, listed
from ...files import parse_json, read_bytes
from . import decathlon
from .names import as_image, by_label
from .refusals import refuse_doubled, refuse_missing
from .types import SPLITS, Case, DataSet, Split


class _Row(NamedTuple):
    where: str  # of the file, for a sentence
    image: list[str]
    label: list[str]
    split: str


def read(path: Path) -> DataSet:
    """The data set of a list of images, their labels and, if it says so, their parts.

    In JSON it is a list of ``{"image": FILE, "label": FILE, "split": "training"}``, where a list of
    files are channels, or what `decathlon.read` takes; in CSV it has the header
    ``image,label,split``, and ``;`` between channels. Paths are absolute, or relative to the file's
    folder. An entry without a label is an image to segment.

    Raises:
        InputError: it cannot be read or is not as above, or lists a file that does not exist.
    """
    text = read_bytes(path)
    ending = path.suffix.lower()
    if ending == ".csv":
        rows = _csv_rows(path, text)
    elif ending == ".json":
        content = parse_json(text, str(path))
        if isinstance(content, dict) and isinstance(content.get("training"), list):
            return decathlon.read(path, content)
        rows = _json_rows(path, content)
    else:
        raise InputError(f"The cases_file is {path}; allowed are files that end in .json and .csv.")
    return _data_set(path, rows)


_COLUMNS = {"image", "label", "split", "id"}  # others may say what would be dropped


def _csv_rows(path: Path, text: bytes) -> list[_Row]:
    try:
        reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig")), strict=True)
        header = reader.fieldnames or []
        if not {"image", "label"} <= set(header) <= _COLUMNS or len(set(header)) < len(header):
            raise InputError(
                f"{path}, line 1, has the header {','.join(header)!r}; needed are image and label, "
                "each once, and allowed are split and id."
            )
        rows = []
        for fields in reader:
            where = f"{path}, line {reader.line_num},"
            if None in fields or None in fields.values():
                raise InputError(f"{where} has not as many fields as the header, {len(header)}.")
            image, label = (_several(fields.get(key, "")) for key in ("image", "label"))
            rows.append(_Row(where, image, label, fields.get("split", "").strip()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error
    return rows


def _several(field: str) -> list[str]:
    return [file.strip() for file in field.split(";") if file.strip()]


def _json_rows(path: Path, content: Any) -> list[_Row]:
    rows = []
    for i, entry in enumerate(content if isinstance(content, list) else [content]):
        where = f"{path}, entry {i},"
        fields = entry if isinstance(entry, dict) and isinstance(content, list) else {}
        values = [fields.get(key) or [] for key in ("image", "label")]
        image, label = ([value] if isinstance(value, str) else value for value in values)
        split = fields.get("split") or ""
        if (
            not image
            or not fields.keys() <= _COLUMNS
            or not all(
                isinstance(files, list) and all(isinstance(file, str) and file for file in files)
                for files in (image, label, [split or "none"])
            )
        ):
            raise InputError(
                f'{where} is not as allowed: a list of {{"image": FILE, "label": FILE, "split": '
                '"training"}, where a list of files stands for channels.'
            )
        rows.append(_Row(where, image, label, split))
    return rows


def _data_set(path: Path, rows: list[_Row]) -> DataSet:
    split = any(row.split for row in rows)
    if wrong := [problem for row in rows if (problem := _problem(row, split))]:
        raise InputError(
            f"{listed(wrong)}; allowed are an image with a label, or one to segment without, and "
            f"for all of them or none a split of {', '.join(SPLITS)}."
        )
    images = [as_image(path.parent / file for file in row.image) for row in rows]
    labels = [as_image(path.parent / file for file in row.label) for row in rows]
    both = list(zip(rows, images, labels, strict=True))
    cases = [Case(image=image, label=label) for row, image, label in both if row.label]
    refuse_missing(cases, path)
    refuse_doubled(cases, path)
    parts: dict[Split, list[Case]] = {
        split: by_label(
            Case(image=image, label=label)
            for row, image, label in both
            if row.label and row.split == split
        )
        for split in SPLITS
        if any(row.label and row.split == split for row in rows)
    }
    to_segment = [image for row, image, _ in both if not row.label]
    notes = []
    if cases and to_segment:
        notes.append(f"{path} lists {len(to_segment)} images without a label: they train nothing.")
    return DataSet("cases_file", by_label(cases), to_segment, parts or None, notes=notes)


def _problem(row: _Row, split: bool) -> str | None:
    if not row.image:
        return f"{row.where} names no image"
    if row.split and row.split not in SPLITS:
        return f"{row.where} has the split {row.split!r}"
    if not row.label and row.split in ("training", "validation"):
        return f"{row.where} has no label, and is for {row.split}"
    if not row.split and row.label and split:
        return f"{row.where} has no split, and others have one"
    return None
