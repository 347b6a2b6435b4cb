"""What files are called: which are images, which are channels of one, which label is an image's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from monai.utils import ensure_tuple

from ...errors import InputError, listed
from ..formats import format_of, stem
from .types import Case, Image

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_MASK = re.compile(r"[-_](mask|seg|label)$", re.IGNORECASE)
_OF_DICOM = re.compile(r"\.(dcm|zip)$", re.IGNORECASE)
_LITS = re.compile(r"^segmentation(?=-\d+$)", re.IGNORECASE)


def images_of(folder: Path, spatial_dims: int | None = None) -> list[Path]:
    """Its image files, of pictures (2), volumes (3) or both (None), and its DICOM series."""
    if not folder.is_dir():
        return []
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in entries if _is_image(path, spatial_dims))


def _is_image(path: Path, spatial_dims: int | None) -> bool:
    found = format_of(path)
    if found is not None and not path.is_dir():
        return spatial_dims in (None, found.spatial_dims)
    if spatial_dims == 3 and not (path.is_dir() or path.suffix.lower() == ".zip"):
        return False  # one DICOM file of a volume is a slice, and the folder is the image
    return is_dicom_series(path)


def is_dicom_series(path: Path) -> bool:
    """Whether a folder, zip or file is DICOM, whatever it is called."""
    from ..dicom import is_dicom  # type: ignore[import-not-found]

    return bool(is_dicom(path))


def volumes_of(folder: Path) -> list[Path]:
    """Its files that are volumes by their names; nothing is opened."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (found := format_of(path)) and found.spatial_dims == 3
    )


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, and those in these."""
    found = sorted(path for path in root.iterdir() if path.is_dir())
    return found + sorted(path for folder in found for path in folder.iterdir() if path.is_dir())


def name_of(path: str | Path) -> str:
    """The name of an image's file or folder, without its ending."""
    return _OF_DICOM.sub("", stem(path))


def without_channel(name: str) -> str:
    """nnU-Net's CASE_0000 is of CASE."""
    found = _CHANNEL.fullmatch(name)
    return found[1] if found else name


def without_mask(name: str) -> str:
    """A label may be called CASE_mask, CASE_seg or CASE_label."""
    return _MASK.sub("", name)


def case_names(case: Case) -> list[str]:
    """What a case may be called in a list; its own name is the first."""
    names = [name_of(file) for file in (*ensure_tuple(case["label"]), *ensure_tuple(case["image"]))]
    return list(dict.fromkeys(n for x in names for n in (without_mask(x), x, without_channel(x))))


def as_image(files: Iterable[Path]) -> Image:
    names = [str(file) for file in files]
    return names[0] if len(names) == 1 else names


def label_key(case: Case) -> tuple[str, ...]:
    files: tuple[str, ...] = ensure_tuple(case["label"])
    return files


def by_label(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=label_key)


def by_name(files: Iterable[Path], name: Callable[[Path], str] = name_of) -> dict[str, Path]:
    """Files by name.

    Raises:
        InputError: two are of one name, as a.nii and a.nii.gz are.
    """
    named: dict[str, Path] = {}
    doubled = []
    for file in files:
        other = named.setdefault(name(file), file)
        if other != file:
            doubled.append(f"{other} and {file}")
    if doubled:
        raise InputError(f"{listed(doubled)} are of one name; allowed is one of them.")
    return named


def grouped(files: Iterable[Path], names: Collection[str] | None = None) -> dict[str, list[Path]]:
    """Files by the image that they are of: NAME_0000, NAME_0001, ... are the channels of NAME.

    Args:
        files: images.
        names: those of the images, where labels tell. Where nothing does and no file's number is
            0000, numbers are parts of names.

    Raises:
        InputError: two files are of one name, a channel is missing, or one image has more channels
            than another.
    """
    by_stem = by_name(files)
    numbered = {one: found for one in by_stem if (found := _CHANNEL.fullmatch(one))}
    if names is not None:
        numbered = {
            one: found for one, found in numbered.items() if one not in names and found[1] in names
        }
    elif not any(found[2] == "0000" for found in numbered.values()):
        numbered = {}
    images: dict[str, list[Path]] = defaultdict(list)
    for one, file in by_stem.items():
        images[numbered[one][1] if one in numbered else one].append(file)
    _check_channels({found[1]: images[found[1]] for found in numbered.values()})
    return dict(images)


def _check_channels(images: Mapping[str, list[Path]]) -> None:
    numbers = {
        name: [name_of(file).removeprefix(f"{name}_") for file in files]
        for name, files in images.items()
    }
    mixed = [" and ".join(map(str, images[name])) for name in images if name in numbers[name]]
    if mixed:
        raise InputError(f"{listed(mixed)} are of one image; allowed is one of them.")
    most = max((int(of_one[-1]) + 1 for of_one in numbers.values()), default=0)
    lacking = [
        f"{images[name][0].parent / name} lacks {', '.join(missing)}"
        for name, of_one in numbers.items()
        if (missing := sorted({f"{i:04d}" for i in range(most)} - set(of_one)))
    ]
    if lacking:
        raise InputError(
            f"{listed(lacking)} of the channels 0000 to {most - 1:04d}; needed is each of them."
        )


def paired(images: Path, labels: Path, notes: list[str]) -> list[Case]:
    """Images and labels of two folders, by name; labels without an image become a note.

    Raises:
        InputError: an image has no label, or as `grouped`.
    """
    files, masks = _of_one_kind(images, notes), _of_one_kind(labels, notes)
    stems = {stem for file in files for stem in (name_of(file), without_channel(name_of(file)))}

    def labelled(label: Path) -> str:
        stem = name_of(label)
        spellings = (stem, without_mask(stem), _LITS.sub("volume", stem))
        return next((name for name in spellings if name in stems), stem)

    label_of = by_name(masks, labelled)
    found = grouped(files, label_of)
    refuse_unlabelled([of_one[0] for name, of_one in found.items() if name not in label_of], labels)
    if rest := [str(label) for name, label in label_of.items() if name not in found]:
        notes.append(f"{len(rest)} labels have no image and are left out: {listed(rest)}.")
    return by_label(
        Case(image=as_image(of_one), label=str(label_of[name])) for name, of_one in found.items()
    )


def unlabelled_images(folder: Path, spatial_dims: int | None = None) -> list[Image]:
    """The images of a folder, their channels together; none where there is no folder."""
    found = grouped(images_of(folder, spatial_dims))
    return [as_image(files) for files in found.values()]


def channels_of(missing: Path) -> list[Path]:
    """The files NAME_0000, NAME_0001, ... of a NAME that is no file itself."""
    name = name_of(missing)
    files = [file for file in images_of(missing.parent) if without_channel(name_of(file)) == name]
    return grouped(files, [name]).get(name, [])


def refuse_missing(cases: Iterable[Case], path: Path) -> None:
    files = [file for case in cases for key in case.values() for file in ensure_tuple(key)]
    missing = [file for file in files if not Path(file).exists()]
    if missing:
        does = "do" if len(missing) > 1 else "does"
        raise InputError(
            f"{path} lists {listed(missing)}, which {does} not exist; needed are all files that it "
            "lists."
        )


def refuse_doubled(cases: Iterable[Case], path: Path) -> None:
    seen: set[str] = set()
    doubled = []
    for case in cases:
        files = {*ensure_tuple(case["image"]), *ensure_tuple(case["label"])}
        doubled += sorted(files & seen)[:1]
        seen |= files
    if doubled:
        raise InputError(f"{path} lists {listed(doubled)} twice; allowed is once.")


def refuse_unlabelled(images: Iterable[object], labels: object) -> None:
    if unlabelled := [str(image) for image in images]:
        count = f"{len(unlabelled)} images have" if len(unlabelled) > 1 else "An image has"
        raise InputError(
            f"{count} no label: {listed(unlabelled)}; needed are labels of the same names in "
            f"{labels}, or the removal of what has none."
        )


def _of_one_kind(folder: Path, notes: list[str]) -> list[Path]:
    """The folder's images; pictures beside volumes are somebody's previews."""
    volumes, everything = images_of(folder, 3), images_of(folder)
    if volumes and len(everything) > len(volumes):
        rest = [str(file) for file in everything if file not in volumes]
        notes.append(f"{len(rest)} pictures lie beside volumes and are left out: {listed(rest)}.")
    return volumes or everything
