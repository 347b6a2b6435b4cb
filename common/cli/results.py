"""What networks found: pictures, and studies that compare them."""

from __future__ import annotations

import logging
import sys
from typing import Any

from ..errors import InputError
from .output import say


def overlay(
    image: str,
    prediction: str,
    output: str,
    label: str | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
) -> None:
    """Draw a prediction's contours on its image; with a label, print the Dice of each class too.

    All are NIfTI files, or all PNG files.
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


def study(
    file: str,
    output: str,
    dataset_dir: str | None = None,
    rows: str | None = None,
    engine: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    gpus: float | None = None,
    dry_run: bool = False,
    **overrides: Any,
) -> None:
    """Train, predict, evaluate and compare what a study file says (extra: study; docs/studies.md).

    What is left is run, what is finished stays. --rows A,B runs these rows alone, --dry_run True
    prints the commands; what else the file says may be given in its place (--budget#max_epochs 10).
    --engine ray runs on a Ray cluster, by its --address (extra: ray), with --gpus for each run;
    --jobs is how many run at once on this machine.
    """
    from ..workflows import run_study

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("common").setLevel(logging.INFO)
    names = None if rows is None else rows.split(",")
    options = (engine, address, jobs, gpus, dry_run, overrides)
    if failures := run_study(file, output, dataset_dir, names, *options):
        raise InputError(f"{'; '.join(failures)}.")
    if not dry_run:
        say(f"tables: {output}/tables.md, {output}/tables.tex")
        say(f"report: {output}/report.html")
