"""What is to be segmented, and where its results go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from monai.utils import ensure_tuple

from ...data import image_files
from ...data.dicom import is_dicom
from ...data.formats import format_of, name_of
from ...data.layouts import Image, told_apart
from ...data.layouts.names import without_first_channel
from ...errors import InputError
from ...files import read_json

MANIFEST = "manifest.json"
PAGE = "view.html"  # that shows a result


class Study(NamedTuple):
    """An image, and its results.

    Attributes:
        name: of the results' folder below the output; of images of one name with the folders, or
            the endings, that tell them apart.
        image: its file, or one file per channel, by absolute paths.
        folder: of the results.
    """

    name: str
    image: Image
    folder: Path

    @property
    def file(self) -> str:
        """The image's file; of several that of the first channel."""
        return str(ensure_tuple(self.image)[0])

    @property
    def stem(self) -> str:
        """What the mask is called, without its ending: as the image."""
        name = _name(self.image)
        return f"{name}_mask" if name.casefold() == "preview" else name  # as a picture is called

    @property
    def is_dicom(self) -> bool:
        one = isinstance(self.image, str)
        return one and format_of(self.file) is None and is_dicom(self.file)

    @property
    def is_done(self) -> bool:
        """Whether its results are there, of which the manifest is written last."""
        return (self.folder / MANIFEST).is_file()


def find_studies(
    inputs: Iterable[str | Path], output: Path, spatial_dims: int
) -> tuple[list[Study], dict[str, str]]:
    """The images of files and folders, and of what is none, or may not be one, a sentence.

    Args:
        inputs: each as `image_files` takes it. What is in the output folder is not looked at, but
            where it is named itself: it is an earlier run's.
        output: the folder of the results, as it is resolved.
        spatial_dims: 2 for pictures, 3 for volumes.
    """
    failed: dict[str, str] = {}
    images: dict[str, Image] = {}
    for given in inputs:
        try:
            found = image_files(given, spatial_dims)
        except InputError as error:
            failed[str(given)] = str(error)
            continue
        for image in found:
            files = [os.path.abspath(file) for file in ensure_tuple(image)]
            named = os.path.abspath(given) == files[0]
            if named or not Path(os.path.realpath(files[0])).is_relative_to(output):
                images.setdefault(
                    os.path.realpath(files[0]), files if isinstance(image, list) else files[0]
                )
    studies = []
    for name, image in zip(_names(list(images.values())), images.values(), strict=True):
        study = Study(name, image, output / name)
        if problem := _problem(study, output, images):
            failed[study.file] = problem
        else:
            studies.append(study)
    return studies, failed


def _name(image: Image) -> str:
    """As the image is called; of its first channel without 0000."""
    if isinstance(image, list):
        return without_first_channel(name_of(image[0]))
    return name_of(image) or "study"  # of the root folder


def _names(images: Sequence[Image]) -> list[str]:
    """A name for each, that no other has on any system."""
    files = [str(ensure_tuple(image)[0]) for image in images]
    names = told_apart([_name(image) for image in images], files)
    counts = Counter(name.casefold() for name in names)
    return [
        name if counts[name.casefold()] == 1 else str(Path(name).with_name(Path(file).name))
        for name, file in zip(names, files, strict=True)
    ]


def _problem(study: Study, output: Path, images: Iterable[str]) -> str | None:
    """Why results cannot be where they would go, if so: nothing of an input is touched."""
    source = Path(os.path.realpath(study.file))
    if source.is_dir() and output.is_relative_to(source):
        return (
            f"The output folder {output} is in the image {source}; allowed is one that is not, as "
            "its files would be taken for the image's."
        )
    for image in map(Path, images):
        if image.is_relative_to(study.folder):
            return (
                f"The results of {study.file} would be in {study.folder}, with the image {image}; "
                "allowed is another output folder."
            )
    manifest = study.folder / MANIFEST
    if not manifest.exists():
        return None
    try:
        earlier = isinstance(read_json(manifest).get("files"), dict)
    except InputError:
        earlier = False
    if not earlier:
        return (
            f"The results of {study.file} would replace {manifest}, which is no earlier result's; "
            "allowed is another output folder."
        )
    return None
