"""Weights put into a bundle for all who get it, with a reference prediction to know them by."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ..checkpoints import check_setting, load_settings, load_state_dict, save_checkpoint
from ..errors import InputError
from ..files import replacing, write_json
from .archives import sha256
from .contract import SETTINGS, WEIGHTS, as_text, config
from .reference import LABEL_MAPS, class_sizes, predict_phantom

_LEAST = 50  # voxels of a class, of which a Dice says something


class Shipped(NamedTuple):
    """Weights that are in a bundle now, and what they find in the phantom of their reference."""

    weights: Path
    checksum: str
    voxels: dict[str, int]  # by the classes' names


def ship(
    bundle: str | Path,
    checkpoint: str | Path,
    kind: str,
    size: int | None = None,
    seed: int = 0,
    min_dice: float = 0.98,
) -> Shipped:
    """Put a training's weights into a bundle, and into its metadata how they are known.

    ``models/model.pt`` gets the parameters and the settings, as a training writes them, and no
    more; ``models/settings.json`` the settings as a config; ``models/reference.nii.gz`` (of
    pictures .png) what the bundle makes of a phantom with them. ``weights`` of metadata.json has
    the SHA-256, ``reference_prediction`` the phantom and the Dice that `verify` asks for. The
    classes' names among the settings become those of the metadata.

    Args:
        bundle: its folder.
        checkpoint: what a training wrote.
        kind, size, seed: of the phantom, see `write_phantom`.
        min_dice: of each class, above 0 and at most 1.

    Raises:
        InputError: the checkpoint has no settings, or is not of the bundle's network; a class has
            hardly a voxel in the phantom; other weights would be lost that the metadata does not
            tell of; an argument is none of what is allowed; or a file cannot be written. The bundle
            is as it was, or where writing failed, `verify` says so.
    """
    bundle, checkpoint = Path(bundle).resolve(), Path(checkpoint)
    if type(min_dice) not in (int, float) or not 0 < min_dice <= 1:
        raise InputError(f"min_dice is {min_dice!r}; allowed are numbers above 0 and at most 1.")
    metadata = config(bundle, "metadata")
    settings = _settings(checkpoint)
    names = list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    weights = OrderedDict(load_state_dict(checkpoint))
    weights.settings = settings | {"label_names": names}  # type: ignore[attr-defined]
    _check_nothing_is_lost(bundle / WEIGHTS, metadata, checkpoint)
    phantom = {"kind": kind, "size": size, "seed": seed}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_checkpoint(weights, folder / "model.pt")
        mask = predict_phantom(bundle, phantom, folder, folder / "model.pt")
        voxels = class_sizes(mask, names)
        for name, found in list(voxels.items())[1:]:
            if found < _LEAST:
                raise InputError(
                    f"Of {name} the weights find {found} voxels in the phantom of kind {kind} and "
                    f"seed {seed}; needed are {_LEAST}, so that a Dice says something: another "
                    "seed or size may show more."
                )
        label_map = next(name for name in LABEL_MAPS if name.endswith(mask.suffix))
        metadata["weights"] = {WEIGHTS: sha256(folder / "model.pt")}
        metadata["reference_prediction"] = {
            "phantom": phantom,
            "label_map": label_map,
            "min_dice": min_dice,
        }
        try:
            (bundle / WEIGHTS).parent.mkdir(exist_ok=True)
            for name, file in ((WEIGHTS, folder / "model.pt"), (label_map, mask)):
                with replacing(bundle / name) as partial:
                    shutil.copyfile(file, partial)
            write_json(bundle / SETTINGS, weights.settings)  # type: ignore[attr-defined]
            with replacing(bundle / "configs/metadata.json") as partial:
                partial.write_text(as_text(metadata), encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"The weights cannot be written to {bundle} ({error}).") from error
    return Shipped(bundle / WEIGHTS, metadata["weights"][WEIGHTS], voxels)


def _settings(checkpoint: Path) -> dict[str, Any]:
    settings = load_settings(checkpoint)
    if not settings:
        raise InputError(
            f"{checkpoint} has no settings of its training; allowed are checkpoints that a "
            "bundle's training wrote."
        )
    for id_, value in settings.items():
        check_setting(id_, value)
    return settings


def _check_nothing_is_lost(there: Path, metadata: dict[str, Any], checkpoint: Path) -> None:
    """Check that weights in the bundle are those that it ships already, or the ones to ship."""
    if there.is_file() and sha256(there) not in (
        str(metadata.get("weights", {}).get(WEIGHTS)).lower(),
        sha256(checkpoint),
    ):
        raise InputError(
            f"{there} would be lost, and metadata.json does not name it; move it, and give it as "
            "the checkpoint if it is to be shipped."
        )
