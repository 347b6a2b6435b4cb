"""Which files are the channels of one image, and which label is an image's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ...errors import InputError, listed
from ..formats import name_of
from .names import (
    CHANNEL,
    FIRST_CHANNEL,
    as_image,
    by_label,
    by_name,
    images_of,
    lits_image,
    without_channel,
    without_mask,
)
from .refusals import refuse_unlabelled
from .types import Case, Image


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
    numbered = {one: found for one in by_stem if (found := CHANNEL.fullmatch(one))}
    if names is not None:
        numbered = {
            one: found for one, found in numbered.items() if one not in names and found[1] in names
        }
    elif not any(found[2] == FIRST_CHANNEL for found in numbered.values()):
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
        f"{images[name][0].parent / name} lacks {listed(missing, 5)}"
        for name, of_one in numbers.items()
        if (missing := sorted({f"{i:04d}" for i in range(most)} - set(of_one)))
    ]
    if lacking:
        raise InputError(
            f"{listed(lacking)} of the channels 0000 to {most - 1:04d}; needed is each of them."
        )


def paired(images: Path, labels: Path, notes: list[str], ending: str = "") -> list[Case]:
    """Images and labels of two folders, by name; labels without an image become a note.

    Args:
        images, labels: the folders.
        notes: gets what is left out.
        ending: as for `images_of`.

    Raises:
        InputError: an image has no label, or as `grouped`.
    """
    files, masks = (_of_one_kind(folder, notes, ending) for folder in (images, labels))
    stems = {stem for file in files for stem in (name_of(file), without_channel(name_of(file)))}

    def labelled(label: Path) -> str:
        stem = name_of(label)
        spellings = (stem, without_mask(stem), lits_image(stem))
        return next((name for name in spellings if name in stems), stem)

    label_of = by_name(masks, labelled)
    found = grouped(files, label_of)
    refuse_unlabelled([of_one[0] for name, of_one in found.items() if name not in label_of], labels)
    if rest := [str(label) for name, label in label_of.items() if name not in found]:
        notes.append(f"Labels without an image are left out: {listed(rest)}.")
    return by_label(
        Case(image=as_image(of_one), label=str(label_of[name])) for name, of_one in found.items()
    )


def unlabelled_images(
    folder: Path, spatial_dims: int | None = None, ending: str = ""
) -> list[Image]:
    """The images of a folder, their channels together; none where there is no folder."""
    found = grouped(images_of(folder, spatial_dims, ending))
    return [as_image(files) for files in found.values()]


def channels_of(missing: Path) -> list[Path]:
    """The files NAME_0000, NAME_0001, ... of a NAME that is no file itself."""
    name = name_of(missing)
    files = [file for file in images_of(missing.parent) if without_channel(name_of(file)) == name]
    return grouped(files, [name]).get(name, [])


def _of_one_kind(folder: Path, notes: list[str], ending: str) -> list[Path]:
    """The folder's images; pictures beside volumes are somebody's previews."""
    volumes, everything = images_of(folder, 3, ending), images_of(folder, ending=ending)
    if volumes and len(everything) > len(volumes):
        rest = map(str, sorted({*everything} - {*volumes}))
        notes.append(f"Pictures beside volumes are left out: {listed(rest)}.")
    return volumes or everything
