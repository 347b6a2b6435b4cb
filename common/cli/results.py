"""What a network found: pictures, and metrics of several trainings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import as_typed, read_json
from .output import say


def overlay(
    image: str,
    prediction: str,
    output: str,
    label: str | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
) -> None:
    """Draw a prediction's contours on its image; with a label, print the Dice of each class too.

    All are volumes, or all pictures.
    """
    from ..evaluation import dice_per_class, draw_overlay

    if label is not None:
        say("class  Dice")
        for index, dice in dice_per_class(prediction, label).items():
            say(f"{index:5d}  {dice:.4f}")
    say(f"mask:    {prediction}")
    say(f"picture: {draw_overlay(image, prediction, output, label, window)}")


def codebook(
    checkpoint: str,
    images: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Draw a network's prototypes and write which one each voxel of the images has.

    Run it in the bundle's folder, or name its config_file. The settings are the checkpoint's, but
    for what is given here (--patch_size "[96,96,64]").
    """
    from ..data import OutputLayout, check_output_folder, image_files
    from ..evaluation import draw_prototypes, write_code_maps
    from ..workflows import load_trained

    check_output_folder(output)
    found = image_files(images)
    planned = OutputLayout(output, images, "codes").plan(found)
    pairs = list(zip(found, planned.values(), strict=True))
    network, preprocessing, patch_size = load_trained(config_file, checkpoint, overrides)
    book = getattr(network, "codebook", None)
    if book is None:
        raise InputError(f"{config_file} has a network without a codebook; allowed is one with it.")
    paths, codes = write_code_maps(network, preprocessing, patch_size, pairs)
    usage = book.usage(codes)
    picture = draw_prototypes(
        book.prototypes.detach().cpu().numpy(), usage.histogram.numpy(), f"{output}/prototypes.png"
    )
    say(f"codes:      {', '.join(str(path) for path in paths)}")
    say(f"perplexity: {usage.perplexity:.1f} of {len(usage.histogram)} prototypes")
    say(f"unused:     {', '.join(map(str, usage.dead)) or 'none'}")
    say(f"picture:    {picture}")


def report(
    *methods: str,
    output: str,
    title: str = "Report",
    comparison: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    predictions: str | None = None,
) -> None:
    """Write a page, tables and figures of methods that were evaluated on the same cases.

    METHODS are folders into which evaluate wrote, or NAME=FOLDER; --comparison is what compare
    wrote. To see the best, the median and the worst case, name the folders of --images, --labels
    and, as NAME=FOLDER,NAME=FOLDER, of each method's --predictions.
    """
    from ..evaluation import write_report

    page = write_report(
        *(title, _named(methods), output),
        comparison=read_json(Path(comparison)) if comparison is not None else None,
        images=images,
        labels=labels,
        predictions=_named(predictions.split(",")) if predictions is not None else None,
    )
    say(f"report: {page}")


def _named(words: Sequence[str]) -> dict[str, str]:
    """Folders by the names before their =, or by their own."""
    folders: dict[str, str] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not (name and folder) or Path(word).is_dir():  # a folder's name may have a =
            name, folder = Path(word).resolve().name, word
        if name in folders:
            raise InputError(
                f"{folders[name]} and {folder} are both named {name}; allowed are different names, "
                "as in NAME=FOLDER."
            )
        folders[name] = folder
    return folders


def repeat(seeds: Any, output: str, bundle: str = ".", **overrides: Any) -> None:
    """Train and evaluate a bundle with each of several seeds; report each metric's mean and spread.

    Run it in the bundle's folder, or name it by --bundle. Seeds are given as 42,57,89; what else
    train.json may be given, as there (--dataset_dir /data --max_epochs 50).
    """
    from ..data import check_output_folder
    from ..evaluation import read_metrics, spread_over_seeds, write_spread
    from ..workflows import run_with_seeds

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    check_output_folder(output)
    seeds = list(seeds) if isinstance(seeds, (list, tuple)) else [seeds]
    typed = {name: as_typed(name, value) for name, value in overrides.items()}
    results = run_with_seeds(bundle, output, seeds, typed)
    done = {seed: read_metrics(x) for seed, x in results.items() if not isinstance(x, str)}
    failures = [x for x in results.values() if isinstance(x, str)]
    if done:
        spreads = spread_over_seeds(done)
        width = max(map(len, spreads))
        say(f"{'metric':{width}}  mean ± standard deviation, seeds {', '.join(map(str, done))}")
        for name, spread in spreads.items():
            say(f"{name:{width}}  {spread.mean:.4f} ± {spread.deviation:.4f}")
        say(f"table: {write_spread(spreads, f'{output}/repeats.csv')}")
    if failures:
        raise InputError(f"{'; '.join(failures)}. Its own message is above.")
