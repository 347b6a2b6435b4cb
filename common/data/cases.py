"""Cases on disk as MONAI data lists, and their split into training, validation and test."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

from monai.data import partition_dataset
from monai.utils import ensure_tuple

from ..errors import InputError

_logger = logging.getLogger(__name__)

Split = Literal["training", "validation", "test"]
_SPLITS: tuple[Split, ...] = ("training", "validation", "test")
_NIFTI = (".nii", ".nii.gz")
IMAGE_FOLDERS = ("imagesTs", "CXR_png")  # of a data set, where `image_files` looks
# The masks of the radiograph CXR_png/{}.png: in the Montgomery set, and in the Shenzhen set.
_MASKS = (
    ("ManualMask/leftMask/{}.png", "ManualMask/rightMask/{}.png"),
    *((f"{folder}/{name}.png",) for folder in ("mask", "masks") for name in ("{}_mask", "{}")),
)


class Case(TypedDict):
    """One labelled case; several image files are its channels, several label files its masks."""

    image: str | list[str]
    label: str | list[str]


def labelled_cases(dataset_dir: str | Path) -> list[Case]:
    """Every labelled case of a data set, sorted by the name of its label.

    The data set is a folder in the layout of the Medical Segmentation Decathlon, where
    ``dataset.json`` lists the cases under "training"; or one with plain ``imagesTr`` and
    ``labelsTr`` folders, whose files pair by name. An image may also be one file per channel,
    ``name_0000.nii.gz``, ``name_0001.nii.gz``, ..., as for nnU-Net.

    Chest radiographs are laid out like the Montgomery and Shenzhen sets (Jaeger et al., Quant
    Imaging Med Surg 4(6), 2014): ``CXR_png/NAME.png`` with ``ManualMask/leftMask/NAME.png`` and
    ``ManualMask/rightMask/NAME.png``, or with ``mask/NAME_mask.png``; the latter's folder may also
    be ``masks``, and its file ``NAME.png``. The data set is one such folder, or a folder of them.
    Radiographs without a mask, as Shenzhen has them, are left out, and the log says how many.

    Raises:
        InputError: a folder or file is missing, a volume has no label or is there twice, as .nii
            and .nii.gz, or no radiograph has a mask.
    """
    root = _folder(dataset_dir)
    if sets := _radiograph_sets(root):
        cases = _radiographs(root, sets)
    else:
        listed = _listed_cases(root)
        cases = listed if listed is not None else _paired_cases(root, "imagesTr", "labelsTr")
    if not cases:
        raise InputError(f"{root} holds no case; needed is at least one image in imagesTr.")
    return sorted(cases, key=lambda case: ensure_tuple(case["label"]))


def split_cases(
    dataset_dir: str | Path,
    split: Split,
    ratios: Sequence[float] = (7, 1, 2),
    seed: int = 0,
    fold: int | None = None,
    num_folds: int = 5,
) -> list[Case]:
    """The part of `labelled_cases` that `split` names, drawn at random by `seed`.

    A data set that comes split, in folders ``train_images``, ``train_masks``, ``valid_images``,
    ..., ``test_masks`` (CirrMRI600+), keeps its own parts: `ratios` and `seed` change nothing then.

    Args:
        dataset_dir: see `labelled_cases`.
        split: "training", "validation" or "test".
        ratios: relative sizes of the three, in that order.
        seed: the same seed gives the same three parts, whichever is asked for.
        fold: None splits by `ratios`; a number from 0 cross-validates: of `num_folds` equal parts
            this one is the test set, the next one is for validation, all others for training.
        num_folds: at least 3.

    Raises:
        InputError: as `labelled_cases`; or the part asked for would be empty.
    """
    if split not in _SPLITS:
        raise InputError(f"split is {split!r}; allowed are {', '.join(_SPLITS)}.")
    if len(ratios) != 3 or min(ratios) < 0 or sum(ratios) <= 0:
        raise InputError(f"ratios is {list(ratios)}; allowed are three numbers, none below 0.")
    if fold is not None and not (num_folds >= 3 and 0 <= fold < num_folds):
        raise InputError(
            f"fold is {fold} of num_folds {num_folds}; allowed are 0 to num_folds - 1, of at "
            "least 3 folds."
        )
    root = _folder(dataset_dir)
    if (root / "train_images").is_dir():
        return _published_split(root, split, fold)
    cases = labelled_cases(root)
    if fold is not None and len(cases) < num_folds:
        raise InputError(
            f"{dataset_dir} holds {len(cases)} labelled cases, too few for {num_folds} folds; "
            "give more cases or fewer folds."
        )
    if fold is None:
        parts = partition_dataset(cases, ratios=ratios, shuffle=True, seed=seed)
    else:
        folds = partition_dataset(cases, num_partitions=num_folds, shuffle=True, seed=seed)
        test, validation = folds[fold], folds[(fold + 1) % num_folds]
        parts = [[c for c in cases if c not in test and c not in validation], validation, test]
    part: list[Case] = parts[_SPLITS.index(split)]
    if not part:
        raise InputError(
            f"{dataset_dir} holds {len(cases)} labelled cases, of which a split by "
            f"{':'.join(f'{r:g}' for r in ratios)} leaves none for {split}; "
            "give more cases or another split."
        )
    return part


def image_files(dataset_dir: str | Path, endings: Sequence[str] = _NIFTI) -> list[str]:
    """The images to segment: one file, or those of a folder.

    Of a data set's folder these are the files in ``imagesTs``, or all radiographs (see
    `labelled_cases`); of another, its own files.

    Args:
        dataset_dir: the file, whatever its name, or the folder.
        endings: how the names of a folder's images end.

    Raises:
        InputError: the path does not exist or holds no image.
    """
    path = Path(dataset_dir)
    if path.is_file():
        return [str(path)]
    root = _folder(path)
    sets = _radiograph_sets(root)
    test = root / "imagesTs"
    folders = [s / "CXR_png" for s in sets] if sets else [test if test.is_dir() else root]
    files = [file for folder in folders for file in _files(folder, endings)]
    if not files:
        raise InputError(
            f"{folders[0]} holds no image; allowed are files that end in {' or '.join(endings)}."
        )
    return [str(file) for file in files]


def check_output_folder(output_dir: str | Path) -> None:
    """Create the folder that a run will write to.

    Raises:
        InputError: it cannot be created or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise InputError(
            f"The output folder {folder} cannot be written to ({error.strerror}); "
            "allowed is a folder in which you may create files."
        ) from error


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder}; needed is one with imagesTr and labelsTr, "
            "with CXR_png and masks, or with the images to segment."
        )
    return folder


def _files(folder: Path, endings: Sequence[str] = _NIFTI) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.endswith(tuple(endings)) and not file.name.startswith(".")
    )


def _stem(file: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", file.name)


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        other = named.setdefault(_stem(file), file)
        if other != file:
            raise InputError(f"{other} and {file} are of one name; allowed is one of them.")
    return named


def _listed_cases(root: Path) -> list[Case] | None:
    """Cases of dataset.json, or None where there is no such list."""
    path = root / "dataset.json"
    if not path.is_file():
        return None
    try:
        training = json.loads(path.read_text(encoding="utf-8")).get("training")
        if not isinstance(training, list):
            return None  # nnU-Net's dataset.json does not list cases
        cases = [
            Case(image=str(root / case["image"]), label=str(root / case["label"]))
            for case in training
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not in the layout of the Medical Segmentation Decathlon: {error!r}."
        ) from error
    for case in cases:
        for key in ("image", "label"):
            if not Path(str(case[key])).is_file():
                raise InputError(f"{path} lists {case[key]}, which does not exist.")
    return cases


def _published_split(root: Path, split: Split, fold: int | None) -> list[Case]:
    if fold is not None:
        raise InputError(
            f"fold is {fold}, but {root} comes with its own split; allowed is no fold (None)."
        )
    name = {"training": "train", "validation": "valid", "test": "test"}[split]
    cases = _paired_cases(root, f"{name}_images", f"{name}_masks")
    if not cases:
        raise InputError(f"{root}/{name}_images holds no image; needed is at least one.")
    return cases


def _paired_cases(root: Path, images_in: str, labels_in: str) -> list[Case]:
    images, labels = root / images_in, root / labels_in
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputError(
                f"{root} has no folder {folder.name}; needed are {images_in} with images and "
                f"{labels_in} with label maps of the same names, or CXR_png with radiographs and "
                "their masks."
            )
    label_of = _by_stem(_files(labels))
    channels: dict[str, list[str]] = defaultdict(list)
    for name, file in _by_stem(_files(images)).items():
        if name not in label_of:
            name = re.sub(r"_\d{4}$", "", name)
        if name not in label_of:
            raise InputError(
                f"{file} has no label: needed is {labels / file.name}, or the image's removal."
            )
        channels[name].append(str(file))
    return [
        Case(image=files[0] if len(files) == 1 else files, label=str(label_of[name]))
        for name, files in channels.items()
    ]


def _radiograph_sets(root: Path) -> list[Path]:
    """The folders that hold a CXR_png: `root` itself, or those in it."""
    if (root / "CXR_png").is_dir():
        return [root]
    return sorted(folder.parent for folder in root.glob("*/CXR_png") if folder.is_dir())


def _radiographs(root: Path, sets: Sequence[Path]) -> list[Case]:
    cases, without_mask = [], 0
    for folder in sets:
        for image in _files(folder / "CXR_png", (".png",)):
            masks = _masks(folder, image.stem)
            if masks:
                label = masks[0] if len(masks) == 1 else masks
                cases.append(Case(image=str(image), label=label))
            else:
                without_mask += 1
    if not cases:
        raise InputError(
            f"{root} holds no radiograph with a mask; needed is CXR_png/NAME.png with "
            "ManualMask/leftMask/NAME.png and ManualMask/rightMask/NAME.png, or with "
            "mask/NAME_mask.png."
        )
    if without_mask:
        _warn_once(
            f"Of the {len(cases) + without_mask} radiographs in {root}, {without_mask} have no "
            "mask: they are left out."
        )
    return cases


def _masks(folder: Path, name: str) -> list[str]:
    for patterns in _MASKS:
        files = [folder / pattern.format(name) for pattern in patterns]
        if all(file.is_file() for file in files):
            return [str(file) for file in files]
    return []


@cache
def _warn_once(message: str) -> None:
    """Training asks for the same cases twice, for its own part and for validation's."""
    _logger.warning("%s", message)
