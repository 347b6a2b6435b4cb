"""The command line: python -m common <verb> --help."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import fire

from .errors import InputError, input_error_in
from .files import replacing


def phantom(
    output: str, cases: int = 8, seed: int = 0, kind: str = "ct", size: int | None = None
) -> None:
    """Write a synthetic data set: kind "ct" (3D, liver and tumours) or "cxr" (2D, lungs)."""
    from .data.phantom import write_phantom

    folder = write_phantom(output, cases=cases, seed=seed, kind=kind, size=size)  # type: ignore[arg-type]
    _say(f"{cases} cases are in {folder}")


def ircadb(input: str, output: str) -> None:
    """Convert 3D-IRCADb-01, folders of DICOM, to the layout that the bundles read (extra: dicom).

    To evaluate on all its cases: --dataset_dir OUTPUT --split "[0,0,1]"
    """
    from .data import write_ircadb

    cases = write_ircadb(input, output)
    width = max(len(case.name) for case in cases)
    for case in cases:
        _say(f"{case.name:{width}}  {case.slices} slices  {', '.join(case.structures)}")
    _say(f"{len(cases)} cases are in {output}")


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
    from .evaluation import dice_per_class, draw_overlay

    if label is not None:
        _say("class  Dice")
        for index, dice in dice_per_class(prediction, label).items():
            _say(f"{index:5d}  {dice:.4f}")
    _say(f"mask:    {prediction}")
    _say(f"picture: {draw_overlay(image, prediction, output, label, window)}")


def convert(checkpoint: str, network: str, output: str) -> None:
    """Rename a checkpoint of a paper's released code for the network of that name here."""
    from .zoo import convert_checkpoint, load_state_dict

    _save(convert_checkpoint(load_state_dict(checkpoint), network), output)


def join(liver: str, tumor: str, output: str) -> None:
    """Join a cascade's checkpoints, one from --stage liver, one from --stage tumor, into one."""
    from .zoo import join_stages

    _save(join_stages(liver, tumor), output)


def plan(
    dataset_dir: str, output: str, gpu_memory: float = 8.0, modality: str | None = None
) -> None:
    """Let nnU-Net plan spacing, patches, stages and intensities for a data set (extra: plan).

    The output goes after the other configs, in training and in inference:
    --config_file "['configs/train.json','configs/plan.json']"
    """
    from .planning import write_plan

    for key, value in write_plan(dataset_dir, output, gpu_memory, modality).items():
        _say(f"{key}: {value}")
    _say(f"plan: {output}")


def doctor() -> None:
    """Say which backend runs the selective scan where, why, how fast, and whether it is right."""
    from .doctor import SelfTestError, examine

    try:
        for line in examine():
            _say(line)
    except SelfTestError as error:
        sys.exit(f"error: {error}")


def codebook(
    checkpoint: str,
    images: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Draw a network's prototypes and write which one each voxel of the images has.

    Run it in the bundle's folder, or name its config_file; what the training changed there has to
    be changed here too (--network_def#num_prototypes 128).
    """
    from .data import OutputLayout, check_output_folder, image_files
    from .evaluation import draw_prototypes, write_code_maps
    from .zoo import load_trained

    check_output_folder(output)
    files = OutputLayout(output, images, "codes").plan(image_files(images))
    network, preprocessing, patch_size = load_trained(config_file, checkpoint, overrides)
    book = getattr(network, "codebook", None)
    if book is None:
        raise InputError(f"{config_file} has a network without a codebook; allowed is one with it.")
    paths, codes = write_code_maps(network, preprocessing, patch_size, files)
    usage = book.usage(codes)
    picture = draw_prototypes(
        book.prototypes.detach().cpu().numpy(), usage.histogram.numpy(), f"{output}/prototypes.png"
    )
    _say(f"codes:      {', '.join(str(path) for path in paths)}")
    _say(f"perplexity: {usage.perplexity:.1f} of {len(usage.histogram)} prototypes")
    _say(f"unused:     {', '.join(map(str, usage.dead)) or 'none'}")
    _say(f"picture:    {picture}")


def export(
    format: str,
    checkpoint: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Write a trained network as "torchscript", "torch_export" or "onnx" (extra: onnx).

    Run it in the bundle's folder, or name its config_file; what the training changed there has to
    be changed here too. The file is kept if its logits are the network's in float64. Images have
    the bundle's patch_size (--patch_size "[96,96,96]" for another); in TorchScript, any.
    """
    import time

    from .zoo import export_network, load_for_export

    network, size, config, metadata = load_for_export(config_file, checkpoint, overrides)
    files = {"inference.json": config}
    start = time.perf_counter()
    difference = export_network(network, size, format, output, metadata, files)
    _say(f"largest difference: {difference:.2g}")
    _say(f"image:              {' x '.join(map(str, size))}, any batch size")
    _say(f"seconds:            {time.perf_counter() - start:.0f}")
    _say(f"{format + ':':19} {output}")


def repeat(seeds: Any, output: str, bundle: str = ".", **overrides: Any) -> None:
    """Train and evaluate a bundle with each of several seeds; report each metric's mean and spread.

    Run it in the bundle's folder, or name it by --bundle. Seeds are given as 42,57,89; what else
    train.json may be given, as there (--dataset_dir /data --max_epochs 50).
    """
    from .data import check_output_folder
    from .evaluation import read_metrics, spread_over_seeds, write_spread
    from .zoo import run_with_seeds

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    check_output_folder(output)
    seeds = list(seeds) if isinstance(seeds, (list, tuple)) else [seeds]
    results = run_with_seeds(bundle, output, seeds, overrides)
    done = {seed: read_metrics(x) for seed, x in results.items() if not isinstance(x, str)}
    failures = [x for x in results.values() if isinstance(x, str)]
    if done:
        spreads = spread_over_seeds(done)
        width = max(map(len, spreads))
        _say(f"{'metric':{width}}  mean ± standard deviation, seeds {', '.join(map(str, done))}")
        for name, spread in spreads.items():
            _say(f"{name:{width}}  {spread.mean:.4f} ± {spread.deviation:.4f}")
        _say(f"table: {write_spread(spreads, f'{output}/repeats.csv')}")
    if failures:
        raise InputError(f"{'; '.join(failures)}. Its own message is above.")


def zoo_pack(*names: str, output: str) -> None:
    """Write bundles as zip files that run by themselves, each with its SHA-256 beside it.

    NAMES are bundles' folders, or their names in bundles. Equal bundles give equal bytes.
    """
    from .zoo import find_bundle, pack

    if not names:
        raise InputError("No bundle is named; needed are folders, or names of folders in bundles.")
    _quieten_monai()
    for bundle in [find_bundle(str(name)) for name in names]:
        archive, left_out = pack(bundle, output)
        _say(f"{archive}, and .sha256 beside it")
        if left_out:
            _say(f"left out: {', '.join(left_out)}")


def zoo_verify(path: str) -> None:
    """Hold a bundle to the whole contract; it is a folder, or a zip file, of anybody's.

    What only reads comes first. Where that passes, the network and the workflows are built, and
    expressions in the configs run: verify only what you would run.
    """
    from .zoo import verify

    _quieten_monai()
    failed = checks = 0
    for name, failures in verify(path):
        if failures is None:
            _say(f"no {name} beside it")
            continue
        checks += 1
        failed += bool(failures)
        for failure in failures:
            _say(f"failed  {name}: {failure}")
        if not failures:
            _say(f"passed  {name}")
    if failed:
        raise InputError(f"{path} fails {failed} of {checks} checks.")


def zoo_index(
    output: str = "model_zoo_index.json",
    zips: str | None = None,
    base_url: str | None = None,
    bundles: str | None = None,
) -> None:
    """Add packed bundles (--zips, which will be at --base_url) to an index; what it has stays.

    --bundles lists, of versions that are not released, the folders in which they are.
    """
    from .zoo import write_index

    _say(f"{len(write_index(output, zips, base_url, bundles))} versions are in {output}")


def zoo_install(
    name: str,
    version: str | None = None,
    index: str = "model_zoo_index.json",
    output: str = ".",
    overwrite: bool = False,
) -> None:
    """Download a bundle that an index lists, verify its SHA-256, and unpack it below --output.

    The index is a file or an address. A download that broke off goes on. An old version is
    replaced, unless that would lose files of yours (--overwrite True).
    """
    from .zoo import install

    _say(f"{name} is in {install(name, version, index, output, overwrite)}")


def zoo_push(name: str, repo: str, dry_run: bool = True, private: bool = True) -> None:
    """Upload a bundle to the Hugging Face Hub, as --repo owner/name (extra: hub).

    It only tells what it would upload, unless --dry_run False. The token is in $HF_TOKEN, or that
    of `hf auth login`.
    """
    from .zoo import find_bundle, push

    _quieten_monai()
    upload = push(find_bundle(name), repo, dry_run, private)
    for file, size in upload.files.items():
        _say(f"{size:12d}  {file}")
    done = "would be uploaded" if dry_run else "are uploaded"
    _say(
        f"{len(upload.files)} files, {sum(upload.files.values())} bytes {done} to {upload.repo}, "
        f"version {upload.version}; docs/README.md becomes the model card"
    )
    if dry_run:
        _say("--dry_run False uploads them")


def main() -> None:
    try:
        verbs = (phantom, ircadb, overlay, convert, join, plan, doctor, codebook, export, repeat)
        zoo = (zoo_pack, zoo_verify, zoo_index, zoo_install, zoo_push)
        groups = {"zoo": {verb.__name__.removeprefix("zoo_"): verb for verb in zoo}}
        fire.Fire({verb.__name__: verb for verb in verbs} | groups, name="common")
    except Exception as error:
        sentence = input_error_in(error)  # MONAI wraps what its transforms raise
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _quieten_monai() -> None:
    """Leave out what MONAI logs and warns of at each call; its errors come as exceptions."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"monai\.")


def _save(weights: dict[str, Any], output: str) -> None:
    import torch

    try:
        with replacing(output) as partial:
            torch.save(weights, partial)
    except (OSError, RuntimeError) as error:
        raise InputError(f"The checkpoint {output} cannot be written ({error}).") from error
    _say(f"{len(weights)} parameters are in {output}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()  # seen at once also where it is piped


if __name__ == "__main__":
    main()
