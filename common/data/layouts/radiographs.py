"""Chest radiographs, laid out like the Montgomery and Shenzhen sets.

(Jaeger et al., Quant Imaging Med Surg 4(6), 2014.) ``CXR_png/NAME.png`` with
``ManualMask/leftMask/NAME.png`` and ``ManualMask/rightMask/NAME.png``, or with
``mask/NAME_mask.png``; the latter's folder may also be ``masks``, and its file ``NAME.png``. They
may be of any format of pictures. The data set is one such folder, or a folder of them.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .names import RADIOGRAPHS, as_image, by_label, by_name, images_of
from .types import Case, DataSet, Image

# Folders and name of the masks of the radiograph called {}.
_MASKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("ManualMask/leftMask", "ManualMask/rightMask"), "{}"),
    *(((folder,), name) for folder in ("mask", "masks") for name in ("{}_mask", "{}")),
)


def read(root: Path) -> DataSet | None:
    """None where there is no CXR_png. Radiographs without a mask, as Shenzhen has them, are noted.

    Raises:
        InputError: no radiograph has a mask, or two files are of one name.
    """
    sets = _sets(root)
    if not sets:
        return None
    cases: list[Case] = []
    without_mask: list[Image] = []
    for folder in sets:
        masks = {
            place: by_name(images_of(folder / place, 2)) for places, _ in _MASKS for place in places
        }
        for name, image in by_name(images_of(folder / RADIOGRAPHS, 2)).items():
            label = _label(name, masks)
            if label is None:
                without_mask.append(str(image))
            else:
                cases.append(Case(image=str(image), label=label))
    if not cases:
        raise InputError(
            f"{root} holds no radiograph with a mask; needed is CXR_png/NAME.png with "
            "ManualMask/leftMask/NAME.png and ManualMask/rightMask/NAME.png, or with "
            "mask/NAME_mask.png."
        )
    notes = []
    if without_mask:
        notes.append(
            f"Of the {len(cases) + len(without_mask)} radiographs in {root}, {len(without_mask)} "
            "have no mask: they are left out."
        )
    return DataSet("chest radiographs", by_label(cases), without_mask, notes=notes)


def images(root: Path, spatial_dims: int) -> list[Image]:
    """All radiographs, with a mask or without."""
    folders = [folder / RADIOGRAPHS for folder in _sets(root)]
    return [str(file) for folder in folders for file in images_of(folder, spatial_dims)]


def _label(name: str, masks: dict[str, dict[str, Path]]) -> Image | None:
    for places, pattern in _MASKS:
        files = [masks[place].get(pattern.format(name)) for place in places]
        if all(files):
            return as_image(file for file in files if file)
    return None


def _sets(root: Path) -> list[Path]:
    """The folders that hold a CXR_png: `root` itself, or those in it."""
    if (root / RADIOGRAPHS).is_dir():
        return [root]
    return sorted(folder.parent for folder in root.glob(f"*/{RADIOGRAPHS}") if folder.is_dir())
