"""Label maps in files: which are of one case, what they hold, and whether grids are the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.utils import MetaKeys
from numpy.typing import NDArray

from ..data import named_classes
from ..data.formats import allowed_endings, format_of, is_lossy, name_of
from ..data.geometry import SAME_PLACE, apart, described, spacing_of
from ..data.label_values import LabelValues, count_values
from ..data.layouts.names import lits_image, told_apart, without_mask
from ..data.readers import FormatReader
from ..data.writers import grey_levels
from ..errors import InputError, by_axis, first_line, listed
from ..ignored import IGNORED

_PROBABILITIES = "_probabilities"  # what the bundles write beside their masks
_MOST_LEVELS = 256  # of a picture's greys


class LoadedImage(NamedTuple):
    """An image, (x, y) or (x, y, z); without an affine it is a picture."""

    what: str
    file: Path
    values: NDArray[np.float32]
    affine: NDArray[np.float64] | None


class LabelMap(NamedTuple):
    """A label map, (x, y) or (x, y, z), and the values in it; without an affine it is a picture.

    Attributes:
        what: prediction or label, for sentences.
    """

    what: str
    file: Path
    values: NDArray[np.int32]
    affine: NDArray[np.float64] | None
    present: set[int]

    @property
    def spacing(self) -> list[float] | None:
        return None if self.affine is None else spacing_of(self.affine, self.values.ndim)

    def mask(self, values: Sequence[int]) -> NDArray[np.bool_]:
        return np.isin(self.values, values)


class Segmentation(NamedTuple):
    """A prediction and, where there is one, its label.

    Attributes:
        maps: by "prediction" and "label", on one grid.
        classes: name -> values in the maps that belong to it.
    """

    maps: dict[str, LabelMap]
    classes: dict[str, list[int]]


def case_of_mask(name: str) -> str:
    """The case of a mask's file without its ending: segmentation-3 is of volume-3, a_seg of a."""
    return lits_image(without_mask(name))


def files_by_case(
    folder: Path,
    what: str,
    case_of: Callable[[str], str] = case_of_mask,
    besides: Path | None = None,
) -> dict[str, Path]:
    """The image files in a folder, and in those in it, by case; hidden ones are none.

    Args:
        what: they are, for sentences.
        case_of: a file's name without its ending -> its case.
        besides: a folder whose files do not count.

    Raises:
        InputError: there is no such folder, it has no files, or two are of one name.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; needed is one with the {what}.")
    apart_from = None if besides is None else os.path.abspath(besides)
    nested = apart_from is not None and Path(apart_from).is_relative_to(os.path.abspath(folder))
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if format_of(file) is not None
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not name_of(file).endswith(_PROBABILITIES)
        and not (nested and Path(os.path.abspath(file)).is_relative_to(str(apart_from)))
    ]
    if not files:
        raise InputError(
            f"{folder} holds no {what}; allowed are files that end in {allowed_endings()}."
        )
    names = [case_of(name_of(file)) for file in files]
    named: dict[str, Path] = {}
    for name, file in zip(told_apart(names, [str(file) for file in files]), files, strict=True):
        if name in named:
            raise InputError(f"{named[name]} and {file} are of one name; allowed is one of them.")
        named[name] = file
    return named


def is_picture(file: str | Path) -> bool:
    """Whether a file's name says that it is a picture, such as a PNG."""
    found = format_of(file)
    return found is not None and found.spatial_dims == 2


def read_image(
    file: str | Path,
    modality: str | None = None,
    series_uid: str | None = None,
    flat: bool = False,
) -> LoadedImage:
    """An image, of several channels in one file the first.

    Args:
        file: of any format of `FormatReader`, a DICOM folder or zip file included.
        modality: of the DICOM series that counts; None takes any.
        series_uid: which DICOM series, where there are several.
        flat: make a picture of a volume of one slice.

    Raises:
        InputError: it cannot be read, or has other than two or three axes.
    """
    reader = FormatReader(grey=flat or is_picture(file), modality=modality, series_uid=series_uid)
    values, affine = _read("image", file, reader)
    if values.ndim == 4:
        values = values[..., 0]
    _check_axes("image", file, values)
    return LoadedImage("image", Path(file), values, affine)


def read_label_map(what: str, file: str | Path, allowed: LabelValues) -> LabelMap:
    """A label map, whose values are those that `allowed` makes of the file's.

    Args:
        what: it is, prediction or label.

    Raises:
        InputError: it cannot be read, is a JPEG, has other than two or three axes, or values that
            are not allowed.
    """
    if is_lossy(file):
        raise InputError(
            f"The {what} {file} is a JPEG, which does not keep values as they are; allowed are "
            "formats that do, such as PNG."
        )
    picture = is_picture(file)
    read, affine = _read(what, file, FormatReader(grey=picture, palette=picture))
    while read.ndim > 3 and read.shape[-1] == 1:
        read = read[..., 0]
    _check_axes(what, file, read)
    values = torch.from_numpy(read)
    present = list(count_values(values))
    if problem := allowed.problem(present):
        raise InputError(f"The {what} {file} {problem}")
    return LabelMap(
        what,
        Path(file),
        allowed.apply(values).to(torch.int32).numpy(),
        affine,
        {int(value) for value in allowed.apply(torch.tensor(present))},
    )


def _read(
    what: str, file: str | Path, reader: FormatReader
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    try:
        values, meta = reader.get_data(reader.read(file))
        values = np.ascontiguousarray(values, np.float32)
    except InputError as error:
        raise InputError(f"The {what} {error}") from error
    except Exception as error:  # whatever readers raise of what is no image
        raise InputError(
            f"The {what} {file} cannot be read ({first_line(error)}); allowed are complete image "
            "files, such as NIfTI or PNG."
        ) from error
    affine = meta.get(MetaKeys.AFFINE)
    return values, None if affine is None else np.asarray(affine, np.float64)


def _check_axes(what: str, file: str | Path, values: NDArray[Any]) -> None:
    if values.ndim not in (2, 3):
        raise InputError(f"The {what} {file} has {values.ndim} axes; allowed are 2 and 3.")


def check_grid(found: LabelMap, other: LabelMap | LoadedImage) -> None:
    """See that a label map is on the grid of its label or image.

    Raises:
        InputError: it is not.
    """
    size, expected = found.values.shape, other.values.shape
    if size != expected:
        raise InputError(
            f"The {found.what} {found.file} has the size {by_axis(size)}, its {other.what} "
            f"{other.file} {by_axis(expected)}; allowed is the {other.what}'s."
        )
    if found.affine is None or other.affine is None:
        return
    if not (distance := apart(other.affine, found.affine, size)) <= SAME_PLACE:
        raise InputError(
            f"The {found.what} {found.file} has the affine {described(found.affine)}, its "
            f"{other.what} {other.file} {described(other.affine)}, which are up to {distance:.3g} "
            f"voxels apart; allowed is the {other.what}'s place, within {SAME_PLACE:g} voxels."
        )


def read_case(
    label: Path,
    predictions: Sequence[Path],
    label_values: LabelValues,
    classes: Mapping[str, Sequence[int]],
    closed: bool = False,
) -> tuple[LabelMap, list[LabelMap]]:
    """A case's label and predictions as they count: without what the label ignores.

    Args:
        label_values: what the values in the label's file stand for.
        classes: name -> values.
        closed: allow no values but the classes'.

    Raises:
        InputError: one cannot be read, has other values, or is not on the label's grid.
    """
    found = [read_label_map("prediction", file, LabelValues()) for file in predictions]
    true = read_label_map("label", label, label_values)
    known = {0, IGNORED}.union(*classes.values())
    for prediction in found:
        check_grid(prediction, true)
    if true.affine is None:
        *found, true = (without_levels(each, max(known)) for each in (*found, true))
    for each in (*found, true):
        if closed and (unknown := sorted(each.present - known)):
            raise InputError(
                f"The {each.what} {each.file} has the values {listed(unknown, 5)}; allowed are 0 "
                f"and {listed(sorted(known - {0, IGNORED}))}, or classes that name others."
            )
    if label_values.ignore_label is not None:
        ignored = true.values == IGNORED
        *found, true = (
            each._replace(values=np.where(ignored, 0, each.values)) for each in (*found, true)
        )
    return true, found


def read_segmentation(
    prediction: str | Path, label: str | Path | None = None, classes: Any = None
) -> Segmentation:
    """A prediction to look at, and a label on its grid.

    Args:
        prediction, label: label maps; pictures have classes or, all of them, n classes as n grey
            levels from 0 to 255.
        classes: name -> value or values; what is in none is background. None takes the names in a
            dataset.json beside the label's folder, and for the others of the values that there are
            "class N".

    Raises:
        InputError: a file cannot be read, the grids differ, or classes are none.
    """
    files = {"prediction": prediction} | ({"label": label} if label is not None else {})
    maps = {what: read_label_map(what, file, LabelValues()) for what, file in files.items()}
    named = None if classes is None else as_classes(classes)
    if label is not None:
        check_grid(maps["prediction"], maps["label"])
        if named is None:
            named = named_classes(Path(os.path.abspath(label)).parent.parent)
    known: dict[str, list[int]] = named or {}
    if maps["prediction"].affine is None:
        most = max((x for values in known.values() for x in values), default=None)
        most = _last_class([each.present for each in maps.values()]) if most is None else most
        maps = {what: without_levels(each, most) for what, each in maps.items()}
    if classes is None:
        taken = {value for values in known.values() for value in values}
        others = {0}.union(*(each.present for each in maps.values())) - taken
        known |= {f"class {value}": [value] for value in sorted(others) if value > 0}
    return Segmentation(maps, known)


def as_classes(classes: Any) -> dict[str, list[int]]:
    """Classes as a user names them: {"liver": [1, 2], "tumour": 2}.

    Raises:
        InputError: they are none.
    """
    if not isinstance(classes, Mapping) or not classes:
        raise InputError(
            f"classes is {classes!r}; allowed is {{name: value or values}}, such as "
            '{"liver": [1, 2], "tumour": 2}.'
        )
    named = {}
    for name, values in classes.items():
        of_class = list(values) if isinstance(values, (list, tuple)) else [values]
        whole = all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in of_class)
        if not of_class or not whole:
            raise InputError(
                f"The class {name} has the values {values!r}; allowed are one or more whole "
                "numbers from 1."
            )
        named[str(name)] = sorted(set(of_class))
    return named


def _last_class(present: Sequence[set[int]]) -> int:
    """The last of the fewest classes that these pictures' values, or grey levels, can be of."""
    for count in range(2, _MOST_LEVELS + 1):
        levels = set(grey_levels(count).tolist())
        if all(max(values, default=0) < count or values <= levels for values in present):
            return count - 1
    return max(max(values, default=0) for values in present)


def without_levels(picture: LabelMap, most: int) -> LabelMap:
    """The classes 0 to `most` of a picture, which may have them as grey levels.

    Raises:
        InputError: it has other values.
    """
    present = picture.present - {IGNORED}
    if max(present, default=0) <= most:
        return picture
    levels = grey_levels(most + 1).tolist() if most < _MOST_LEVELS else []
    if not present <= set(levels):
        shown = f", or the grey levels {listed(levels)}" if levels else ""
        raise InputError(
            f"The {picture.what} {picture.file} has the values {listed(sorted(present), 5)}; "
            f"allowed are the classes 0 to {most}{shown}; others need classes that name them."
        )
    classes = np.searchsorted(levels, picture.values)
    classes[picture.values == IGNORED] = IGNORED
    return picture._replace(
        values=classes.astype(np.int32), present={levels.index(value) for value in present}
    )
