"""Pages to look at results."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from ...data.label_values import LabelValues
from ...errors import InputError
from ...evaluation.label_maps import LabelMap, Segmentation, read_label_map, without_levels
from ...evaluation.view import write_page
from ...files import read_json
from .studies import MANIFEST, PAGE


class Views(NamedTuple):
    """Pages of results.

    Attributes:
        pages: study -> its page.
        failed: study -> why it has none: a sentence.
    """

    pages: dict[str, Path]
    failed: dict[str, str]


def view_results(result: str | Path, output: str | Path | None = None) -> Views:
    """Write a page of each study that `segment` has done, as `common.evaluation.write_view` does.

    Image, masks, classes and modality are those that the manifest names. Of several studies one
    that cannot be shown does not keep the others from being shown.

    Args:
        result: the folder of a study's results, or the output with those of several.
        output: the page of the one study. None, as for several, is ``view.html`` in its folder,
            which goes when the study is segmented anew.

    Raises:
        InputError: there are no results, or an output is given for several; or of one study, its
            image or masks cannot be read, its manifest is none, or the page cannot be written.
    """
    folder = Path(result)
    try:
        alone = (folder / MANIFEST).is_file()
        files = [] if alone else sorted(folder.rglob(MANIFEST))
    except OSError as error:
        raise InputError(f"The results {folder} cannot be read ({error.strerror}).") from error
    if alone:
        return Views({folder.resolve().name: _write(folder, output)}, {})
    studies = {
        file.parent.relative_to(folder).as_posix(): file.parent
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    if not studies:
        raise InputError(
            f"{folder} has no {MANIFEST}; allowed are the folder of a study that was segmented, "
            "and the output with several."
        )
    if output is not None:
        raise InputError(
            f"output is {output}, and {folder} has {len(studies)} studies; allowed is the folder "
            f"of one, or no output: each has its page as {PAGE} in its folder."
        )
    found = Views({}, {})
    for name, place in tqdm(studies.items(), "pages", disable=None):
        try:
            found.pages[name] = _write(place, None)
        except InputError as error:
            found.failed[name] = str(error)
    return found


def _write(folder: Path, output: str | Path | None) -> Path:
    manifest = read_json(folder / MANIFEST)
    try:
        image = str(ensure_tuple(manifest["input"])[0])
        classes = {str(name): int(value) for name, value in manifest["classes"].items()}
        masks = _masks(folder, manifest["files"], classes)
        last = int(manifest["num_classes"]) - 1
        modality, series_uid = manifest["modality"], manifest["series_uid"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST} is not what segment writes ({type(error).__name__}: {error}); "
            "allowed is the manifest of a study that it did."
        ) from error
    prediction = _prediction(folder, masks, classes, last)
    shown = Segmentation(
        {"prediction": prediction}, {name: [value] for name, value in classes.items()}
    )
    page = folder / PAGE if output is None else Path(output)
    return write_page(image, shown, page, modality, series_uid)


def _masks(folder: Path, files: Any, classes: Container[str]) -> dict[str, Path]:
    """The masks of classes by their names, or that of all, of which the name is empty.

    Raises:
        ValueError: there is none, or one is of no class.
    """
    if "masks" not in files:
        return {"": folder / Path(files["mask"]).name}
    named = {str(name): folder / Path(file).name for name, file in files["masks"].items()}
    if not named:
        raise ValueError("it names no mask")
    for name in named:
        if name not in classes:
            raise ValueError(f"it has no class {name!r}")
    return named


def _prediction(
    folder: Path, masks: dict[str, Path], classes: dict[str, int], last: int
) -> LabelMap:
    """The label map of a result.

    Args:
        last: the value of the last of all the bundle's classes, by which a picture's greys go.
    """
    maps = {name: read_label_map("prediction", file, LabelValues()) for name, file in masks.items()}
    if "" in maps:
        whole = maps[""]
        return whole if whole.affine is not None else without_levels(whole, last)
    first, *_ = maps.values()
    values = np.zeros_like(first.values)
    for name, part in maps.items():
        if part.values.shape != values.shape:
            raise InputError(f"{part.file} and {first.file} differ in size; allowed is one grid.")
        values[part.values > 0] = classes[name]
    present = {int(value) for value in np.unique(values)}
    return LabelMap("prediction", folder, values, first.affine, present)
