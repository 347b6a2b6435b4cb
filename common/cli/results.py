"""What a network found: pictures, and metrics of several trainings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, listed
from ..files import as_typed, read_json
from .output import quieten_monai, say, table


def overlay(
    image: str,
    prediction: str,
    output: str,
    label: str | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
    classes: Any = None,
) -> None:
    """Draw a prediction's contours on its image; with a label, errors and each class's Dice.

    All are volumes, or all pictures.

    Input:
        image: the file of the image.
        prediction: a label map on its grid.
        label: the true label map, whose contours are dashed.
        classes: names, as "{'liver': [1,2], 'tumour': 2}", by default dataset.json's by the label.
    Output:
        output: the PNG to write.
        window: lowest and highest HU that are shown; None is of the image's own.
    """
    from ..evaluation import dice_per_class, draw_overlay

    if label is not None:
        scores = dice_per_class(prediction, label, classes)
        width = max(map(len, ("class", *scores)))
        say(f"{'class':{width}}  Dice")
        for name, dice in scores.items():
            say(f"{name:{width}}  {dice:.4f}")
    say(f"mask:    {prediction}")
    say(f"picture: {draw_overlay(image, prediction, output, label, window, classes)}")


def view(
    result: str | None = None,
    image: str | None = None,
    prediction: str | None = None,
    output: str | None = None,
    label: str | None = None,
    classes: Any = None,
    modality: str | None = None,
) -> None:
    """Write one HTML page to look at a segmentation: slices, classes, windows, statistics.

    It opens without a network. docs/viewing.md says what is shown.

    What segment did:
        RESULT: the folder of a study, or the output with several, which have a page each.
    Any other files:
        image: the file of the image.
        prediction: a label map on its grid.
        label: the true label map: with it, what was missed and what is false is shown, and metrics.
        classes: names, as "{'liver': [1,2], 'tumour': 2}", by default dataset.json's by the label.
        modality: CT, or another, which chooses the windows; by default the image's values tell.
    Output:
        output: the HTML file to write, by default view.html in a result's folder.
    """
    from ..evaluation import write_view
    from ..workflows import view_results

    quieten_monai()
    if result is None:
        if image is None or prediction is None or output is None:
            raise InputError(
                "view needs what segment did, RESULT, or --image, --prediction and --output; "
                "`python -m common view --help` says what these are."
            )
        say(f"page: {write_view(image, prediction, output, label, classes, modality)}")
        return
    others = {"image": image, "prediction": prediction, "label": label, "modality": modality}
    for name, value in (others | {"classes": classes}).items():
        if value is not None:
            raise InputError(
                f"{name} is {value}, and the result {result} says it itself; allowed is --output."
            )
    found = view_results(result, output)
    for page in found.pages.values():
        say(f"page: {page}")
    for sentence in found.failed.values():
        say(f"failed: {sentence}")
    if found.failed:
        raise InputError(
            f"{len(found.failed)} of {len(found.failed) + len(found.pages)} studies in {result} "
            "cannot be shown, as said above."
        )


def codebook(
    checkpoint: str,
    images: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Draw a network's prototypes and write which one each voxel of the images has.

    The settings are the checkpoint's, but for what is given here.

    Input:
        checkpoint: the file with the weights.
        images: an image, or a folder of them.
        config_file: of the bundle; this one in its folder.
        overrides: what the config may be given, such as --patch_size "[96,96,64]".
    Output:
        output: the folder for prototypes.png and the maps.
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


def compare(
    *methods: str, output: str, metrics: str = "dice", strata: str = "20,50", seed: int = 0
) -> None:
    """Compare methods over the cases that they share: tests, intervals, effect sizes, ranks.

    Input:
        METHODS: folders into which evaluate wrote, or NAME=FOLDER.
    Output:
        output: the folder for comparison.json.
    Statistics:
        metrics: columns of cases.csv, or lesion_dice; A,B for several.
        strata: of lesion_dice, diameters in mm between which lesions are compared.
        seed: of the resampled cases.
    """
    from ..evaluation import compare as compare_methods
    from ..evaluation import comparison_lines

    try:
        edges = [float(edge) for edge in strata.split(",")]
    except ValueError:
        raise InputError(
            f"strata are {strata!r}; allowed are numbers, as in --strata 20,50."
        ) from None
    found = compare_methods(_named(methods), output, metrics.split(","), edges, seed)
    for line in comparison_lines(found):
        say(line)
    say(f"comparison: {Path(output) / 'comparison.json'}")


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


def evaluate(
    predictions: str,
    labels: str,
    output: str,
    classes: Any = None,
    lesions: Any = None,
    lesion_overlap: float = 0.1,
    empty: str = "nnunet",
    tolerance_mm: float = 2.0,
    label_map: Any = None,
    ignore_label: int | None = None,
) -> None:
    """Measure a folder of predicted label maps against one of true ones; write tables.

    docs/evaluation.md says what the metrics are. Where a case cannot be evaluated the exit code is
    1, and the others are in the tables.

    Input:
        predictions: the folder of the predicted label maps.
        labels: the folder of the true ones; equal names are of one case.
        label_map: what values of the labels are in the predictions, as "{1: 1, 2: 1}".
        ignore_label: the value in the labels of voxels that do not count.
    Output:
        output: the folder for cases.csv, summary.json and lesions.csv.
    What is measured:
        classes: values by names, as "{'liver': [1,2], 'tumour': 2}"; by default each value.
        lesions: names of classes whose connected components are looked at, as tumour.
        lesion_overlap: the part of a lesion that has to be covered for it to be found.
        empty: what counts where a mask is empty: nnunet, or another rule of that page.
        tolerance_mm: of the normalised surface Dice; pixels of pictures.
    """
    from ..evaluation import evaluate as evaluate_folders

    quieten_monai()
    done = evaluate_folders(
        *(predictions, labels, output, classes, lesions, lesion_overlap, empty, tolerance_mm),
        *(label_map, ignore_label),
    )
    found = done.summary["classes"]
    metrics = ("dice", "iou", "precision", "recall", "asd", "hd95", "nsd")
    width = max(5, *map(len, found))
    head = [f"{'class':{width}}", *(f"{metric:>9}" for metric in metrics), "n", "missed", "false"]
    say("  ".join(head))
    for name, of_class in found.items():
        means = [of_class[metric]["mean"] for metric in metrics]
        shown = ["        -" if mean is None else f"{mean:9.4f}" for mean in means]
        n, missed, false = (of_class["dice"][count] for count in ("n", "missed", "false"))
        say("  ".join([f"{name:{width}}", *shown, f"{n}", f"{missed:6}", f"{false:5}"]))
    for name, of_class in done.summary["lesions"].items():
        say(
            f"lesions of {name}: {of_class['found']} found, {of_class['missed']} missed, "
            f"{of_class['false']} false"
        )
    say(f"distances are in {done.summary['settings']['unit']}; tables are in {output}")
    for sentence in done.skipped.values():
        say(f"left out: {sentence}")
    if done.skipped:
        several = "s are" if len(done.skipped) > 1 else " is"
        raise InputError(
            f"{len(done.skipped)} case{several} left out of the tables in {output}, as said above."
        )


def profile(
    bundle: str = ".",
    output: str | None = None,
    networks: str | None = None,
    checkpoint: str | None = None,
    volume: Any = None,
    device: str | None = None,
    batch: int = 1,
    repeats: int = 5,
    **overrides: Any,
) -> None:
    """Measure what a bundle's network costs: parameters, FLOPs, seconds, peak memory.

    Times are of a patch, of a training step and, with --volume, from an image's file to its mask's.

    Input:
        bundle: the bundle, by its name, folder or zip file; A,B for several.
        networks: names of its configs/networks to measure beside it, as segresnet,unetr.
        checkpoint: whose settings count, and through whose weights a volume goes.
        volume: an image's file, or the size of one that is made up, as "[512,512,100]".
        overrides: what train.json and inference.json may be given, as --patch_size "[96,96,96]".
    Output:
        output: a folder for costs.json; of several networks each has a folder in it.
    How it is measured:
        device: cpu, cuda or cuda:1; by default a GPU if there is one.
        batch: patches at once.
        repeats: of which the median counts.
    """
    from ..workflows import cost_rows
    from ..workflows import profile as measure
    from ..zoo import find_bundle

    quieten_monai()
    names = [bundle] if Path(bundle).is_dir() else bundle.split(",")
    bundles = [find_bundle(name) for name in names]
    if not isinstance(volume, (list, tuple)):
        volume = as_typed("volume", volume)
    found = measure(
        bundles, output, networks, checkpoint, volume, device, batch, repeats, overrides
    )
    header, *rows = cost_rows(found)
    say(f"{next(iter(found.values())).machine}; scans by {next(iter(found.values())).scan_backend}")
    say()
    say(table(header, rows))
    if output is not None:
        say(f"costs: {output}")
    failed = [
        f"{name}'s {field} ({reason})"
        for name, costs in found.items()
        for field, reason in costs.not_measured.items()
    ]
    if failed:
        raise InputError(f"Not measured: {listed(failed)}.")


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
    """Train, predict, evaluate and compare what a study file says (extra: study).

    What is left is run, what is finished stays. docs/studies.md says what the file says.

    Input:
        FILE: the study; A,B for several files, of which later ones count more.
        dataset_dir: the data set, in place of the file's.
        rows: those to run, A,B; by default all.
        overrides: what else the file says, in its place, such as --budget#max_epochs 10.
    Output:
        output: a folder for everything, which the study has for itself.
        dry_run: only print the commands.
    Where it runs:
        engine: local for this machine, ray for a Ray cluster (extra: ray).
        address: of the cluster.
        jobs: how many runs at once on this machine.
        gpus: for each run on the cluster.
    """
    from ..workflows import run_study

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("common").setLevel(logging.INFO)
    names = None if rows is None else rows.split(",")
    options = (engine, address, jobs, gpus, dry_run, overrides)
    files = [file] if Path(file).is_file() else file.split(",")
    if failures := run_study(files, output, dataset_dir, names, *options):
        raise InputError(f"{'; '.join(failures)}.")
    if not dry_run:
        say(f"tables: {output}/tables.md, {output}/tables.tex")
        say(f"report: {output}/report.html")


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

    The best, the median and the worst case are shown where images, labels and predictions are
    given.

    Input:
        METHODS: folders into which evaluate wrote, or NAME=FOLDER.
        comparison: the comparison.json that compare wrote of them.
        images: the folder of the images.
        labels: the folder of the true label maps.
        predictions: the folders of each method's label maps, NAME=FOLDER,NAME=FOLDER.
    Output:
        output: the folder for report.html, tables and figures.
        title: of the page.
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
