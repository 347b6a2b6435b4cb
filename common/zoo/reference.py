"""A reference prediction: what weights make of a phantom, by which broken environments are seen.

The phantom is drawn anew each time, by `common.data.phantom` from a kind, a size and a seed. It
goes the whole way of a user's image: from its file through the inference config to a mask.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.bundle import ConfigWorkflow

from ..files import read_json

# Of volumes and of pictures; where the label map of a bundle's weights is.
LABEL_MAPS = ("models/reference.nii.gz", "models/reference.png")
_KEYS = {"phantom", "label_map", "min_dice"}
_PACKAGES = ("torch", "monai", "numpy", "scipy")


def predict_phantom(
    bundle: Path, phantom: Mapping[str, Any], folder: Path, checkpoint: Path | None = None
) -> Path:
    """Draw a phantom, segment it with a bundle on the CPU, and return the mask's file.

    Args:
        bundle: its folder.
        phantom: kind, size and seed, see `write_phantom`.
        folder: for the phantom and the mask.
        checkpoint: the weights; None takes the bundle's own.

    Raises:
        InputError: as `write_phantom`, or as a run of the bundle.
    """
    # Configs import this package for every network: what they do not need is imported here.
    from ..data.phantom import write_phantom

    data = write_phantom(folder / "phantom", cases=1, progress=False, **phantom)
    image = data / read_json(data / "dataset.json")["training"][0]["image"]
    file = bundle / "configs/inference.json"
    explain = {"_target_": "common.errors.explain_input_errors"}  # for a process of its own
    given: dict[str, Any] = {
        "bundle_root": str(bundle),
        "dataset_dir": str(image),
        "output_dir": str(folder / "masks"),
        "device": "cpu",
        "run": [step for step in read_json(file)["run"] if step != explain],
    }
    if checkpoint is not None:
        given["checkpoint"] = str(checkpoint)
    workflow = ConfigWorkflow(str(file), workflow_type="infer", logging_file=False, **given)
    paths = list(sys.path)
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        sys.path[:] = paths  # to which MONAI adds the bundle's folder
    (mask,) = (folder / "masks").rglob("*_seg.*")
    return mask


def reference_failures(bundle: Path, metadata: Mapping[str, Any]) -> Iterator[str]:
    """How a bundle's weights differ from the reference prediction in its metadata, if there is one.

    Yields:
        A sentence for each class whose Dice is below ``min_dice``, or for what cannot be compared.
    """
    told = metadata.get("reference_prediction")
    if told is None:
        return
    if not _is_reference(told):
        yield (
            f"reference_prediction of metadata.json is {told}; allowed are phantom, with kind, "
            f"size and seed, label_map, which is {' or '.join(LABEL_MAPS)}, and min_dice, above 0 "
            "and at most 1"
        )
        return
    if not metadata.get("weights"):
        yield "reference_prediction of metadata.json is of weights, and weights names none"
        return
    label_map = bundle / told["label_map"]
    if not label_map.is_file():
        yield f"{told['label_map']} is missing, and metadata.json says that it is the reference"
        return
    from ..evaluation import dice_per_class

    with TemporaryDirectory() as folder:
        found = dice_per_class(predict_phantom(bundle, told["phantom"], Path(folder)), label_map)
    if not found:
        yield f"{told['label_map']} has no class, and no mask differs from it"
    for name, dice in found.items():
        # A class that neither has is NaN.
        if not (math.isnan(dice) or dice >= told["min_dice"]):
            yield (
                f"in a phantom ({_words(told['phantom'])}) {name} has a Dice of {dice:.3f} "
                f"with {told['label_map']}, and needed is {told['min_dice']}: here, with "
                f"{', '.join(f'{name} {version(name)}' for name in _PACKAGES)}, something is "
                "computed in another way than where the weights were published"
            )


def _is_reference(told: Any) -> bool:
    return (
        isinstance(told, dict)
        and told.keys() == _KEYS
        and isinstance(told["phantom"], dict)
        and told["phantom"].keys() == {"kind", "size", "seed"}
        and (told["phantom"]["size"] is None or told["phantom"]["size"] in range(1, 513))
        and told["label_map"] in LABEL_MAPS
        and isinstance(told["min_dice"], (int, float))
        and 0 < told["min_dice"] <= 1
    )


def _words(phantom: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in phantom.items())


def class_sizes(label_map: Path, names: Sequence[str]) -> dict[str, int]:
    """Voxels of each class in a mask as the bundle writes it.

    Args:
        label_map: its file.
        names: of all classes, the background's first.
    """
    from monai.transforms import LoadImage

    from ..data.writers import grey_levels

    values = LoadImage(image_only=True)(label_map)
    picture = label_map.suffix == ".png"
    levels = grey_levels(len(names)).tolist() if picture else range(len(names))
    return {name: int((values == x).sum()) for x, name in zip(levels, names, strict=True)}
