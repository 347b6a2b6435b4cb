"""Scans to masks, pictures, numbers and DICOM, by a bundle, here or on a cluster."""

from __future__ import annotations

import csv
import gc
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...checkpoints import members
from ...data import check_output_folder
from ...errors import InputError, check_choice, first_line, input_error_in, listed
from ...files import read_json, writing
from ...zoo import find_bundle
from .bundle import Bundle, Run
from .options import Options
from .results import Results
from .steps import Steps
from .studies import MANIFEST, Study, find_studies
from .watch import Watch
from .work import remove_left, work_folder

SUMMARY = "summary.csv"
_logger = logging.getLogger(__name__)


class Segmentations(NamedTuple):
    """What `segment` did.

    Attributes:
        done: study -> the folder of its results.
        failed: study, or input -> why it is not done, or what of it is not there: a sentence.
    """

    done: dict[str, Path]
    failed: dict[str, str]


def segment(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    bundle: str | Path,
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    fast: bool = False,
    flips: bool = False,
    preview: bool = False,
    statistics: bool = False,
    dicom_seg: bool = False,
    rtstruct: bool = False,
    ml: bool = True,
    roi_subset: str | Sequence[str] | None = None,
    force_split: bool = False,
    any_modality: bool = False,
    overwrite: bool = True,
    engine: str = "local",
    address: str | None = None,
    gpus: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Segmentations:
    """Segment scans by a bundle's own inference.json, and say, show and send what was found.

    Each study has a folder of its name in the output: its mask, called as the image, on the image's
    own grid; what is chosen below; and ``manifest.json``, which is written last: of all files,
    versions, options, the weights' SHA-256, how many voxels each class has, and of each step its
    seconds and peak memory. A study appears complete or not at all. One that fails does not keep
    the others from being done. Of several studies ``summary.csv`` has a row each.

    Args:
        inputs: images, or folders of them, in all formats of `common.data.image_files`.
        output: the folder for the results.
        bundle: a bundle's folder, its zip file, or its name in ``bundles``.
        checkpoint: weights in place of the bundle's: a file, those of an ensemble, or their folder.
        device: "auto" takes CUDA where there is a GPU; "cpu", "cuda", "cuda:1", "mps" and "xpu".
        fast: windows overlap by a quarter, not by a half: of a large volume a third of the windows.
        flips: the mean over the flips that training has seen, up to 8.
        preview: ``preview.png``, contours on three planes, a legend, and the surfaces.
        statistics: ``statistics.json``, see `common.evaluation.findings`.
        dicom_seg: ``segmentation.dcm``, a DICOM Segmentation of the input's series.
        rtstruct: ``rtstruct.dcm``, an RT Structure Set of the input's series.
        ml: one mask of all classes; False writes one of 0 and 1 for each, called as the class.
        roi_subset: names of classes; all others are background. As text with commas, too.
        force_split: gather what is computed of windows on disk, whatever the size, as is done from
            256 MiB on.
        any_modality: take what is not of the bundle's modality, or does not look like it.
        overwrite: False leaves alone studies whose results are there.
        engine: "local", this process, or "ray", a task a study on a Ray cluster, whose nodes see
            all files; a task whose node dies is begun anew on another one.
        address: of the cluster; None is one of this machine.
        gpus: of each task; by default 1 where the cluster has any.
        overrides: ids of inference.json and their values, such as {"series_uid": ...}.

    Raises:
        InputError: an argument is not as above, the output folder cannot be written to, the weights
            do not fit, or nothing at all could be segmented.
        Stopped: on Ray, SIGTERM or Ctrl-C ended it.
    """
    check_choice("engine", engine, ("local", "ray"))
    for name, value in (("address", address), ("gpus", gpus)):
        if value is not None and engine != "ray":
            raise InputError(f"{name} is {value!r}; allowed is none, but with the engine ray.")
    options = Options(
        checkpoint=None if checkpoint is None else _weights(checkpoint),
        device=device,
        fast=fast,
        flips=flips,
        preview=preview,
        statistics=statistics,
        dicom_seg=dicom_seg,
        rtstruct=rtstruct,
        ml=ml,
        roi_subset=_several(roi_subset),
        force_split=force_split,
        any_modality=any_modality,
        overwrite=overwrite,
        overrides=dict(overrides or {}),
    )
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not given:
        raise InputError("No input is named; needed are images, or folders with them.")
    folder = Path(os.path.realpath(output))
    place = find_bundle(bundle)
    of = Bundle(place, options)
    check_output_folder(folder)
    remove_left(folder)
    studies, failed = find_studies(given, folder, of.spatial_dims)
    _check_dicom(studies, options)
    left = [study for study in studies if overwrite or not study.is_done]
    if kept := len(studies) - len(left):
        _logger.info("%d of %d studies are done already, and are kept.", kept, len(studies))
    before = {study.name: _written(study) for study in left}
    if left and engine == "ray":
        from .cluster import run_on_cluster

        packed = os.path.abspath(bundle) if os.path.isfile(bundle) else str(place)
        failed |= run_on_cluster(left, folder, packed, options, address, gpus)
    elif left:
        failed |= run_here(of, left, folder)
    # Where a study failed, what an earlier run left of it is there still.
    done = {
        study.name: study.folder
        for study in studies
        if study.is_done and before.get(study.name) != _written(study)
    }
    if not done:
        raise InputError(f"Nothing was segmented: {listed(map(_without_stop, failed.values()))}.")
    if len(studies) + len(failed) > 1:
        _write_summary(folder / SUMMARY, studies, done, failed)
    return Segmentations(done, failed)


def run_here(bundle: Bundle, studies: Sequence[Study], output: Path) -> dict[str, str]:
    """Segment studies in this process, by one workflow as long as none fails.

    After one that fails the next ones have a new workflow: an evaluator that has raised does not
    go on.

    Returns:
        Of each study that failed, or lacks something, why.

    Raises:
        InputError: something is wrong that concerns all.
    """
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(work_folder(output))
            work = {study.name: partial / str(i) for i, study in enumerate(studies)}
            for place in work.values():
                place.mkdir()
        except OSError as error:
            raise InputError(
                f"The output folder {output} cannot be written to ({error.strerror})."
            ) from error
        bar = stack.enter_context(tqdm(total=len(studies), desc="studies", disable=None))
        left = list(studies)
        while left:
            done = _run(bundle, left, work, bar, failed)
            left = left[done:]
            gc.collect()  # a workflow and its handlers refer to each other, and hold a network
    return failed


def _run(
    bundle: Bundle,
    studies: Sequence[Study],
    work: Mapping[str, Path],
    bar: Any,
    failed: dict[str, str],
) -> int:
    """Segment studies until one fails, which is put down; how many are done with, that one, too."""
    run: Run | None = None

    def finish(
        study: Study,
        labels: NDArray[np.integer],
        affine: NDArray[np.float64],
        steps: Steps,
    ) -> None:
        assert run is not None
        place = affine if bundle.spatial_dims == 3 else None
        results = Results(bundle, run, study, labels, place, work[study.name], steps)
        try:
            results.write()
        except Exception as error:
            failed[study.name] = _sentence(study, error)
        else:
            if results.failed:
                failed[study.name] = " ".join(results.failed.values())
            elif not any(results.voxels.values()):
                _logger.warning("%s: no %s was found.", study.name, " and no ".join(run.classes))
        bar.update()

    watch = Watch(studies, finish, bar.set_postfix_str)
    try:
        run = bundle.run(studies, work, watch)
        run()
    except Exception as error:
        if not watch.began:
            if (sentence := input_error_in(error)) is None:
                raise
            raise InputError(sentence) from error
        study = studies[watch.done]
        failed[study.name] = _sentence(study, error)
        bar.update()
        return watch.done + 1
    if watch.done < len(studies):
        raise RuntimeError(f"{bundle.file} ended after {watch.done} of {len(studies)} images.")
    return watch.done


def _sentence(study: Study, error: Exception) -> str:
    """Why a study failed; of what nobody foresaw the log has the traceback."""
    if (sentence := input_error_in(error)) is not None:
        return sentence
    _logger.error("%s failed.", study.name, exc_info=error)
    return f"{study.file} cannot be segmented ({type(error).__name__}: {first_line(error)})."


def _weights(checkpoint: str | Path | Sequence[str | Path]) -> list[str]:
    return [os.path.abspath(file) for file in members(checkpoint)]


def _several(names: str | Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    found = names.split(",") if isinstance(names, str) else list(names)
    return [str(name).strip() for name in found]


def _check_dicom(studies: Sequence[Study], options: Options) -> None:
    """Refuse at once what no study could have."""
    if options.dicom and studies and not any(study.is_dicom for study in studies):
        files = listed((study.file for study in studies), 3)
        raise InputError(
            f"{options.dicom[0]} is True, and of the images none is a DICOM series to refer to: "
            f"{files}; allowed is False, or DICOM files, folders and zip files."
        )


def _written(study: Study) -> int | None:
    """When the results that are there were written, if there are any."""
    return (study.folder / MANIFEST).stat().st_mtime_ns if study.is_done else None


def _without_stop(sentence: str) -> str:
    return sentence.rstrip(".")


def _write_summary(
    path: Path, studies: Sequence[Study], done: Mapping[str, Path], failed: Mapping[str, str]
) -> None:
    """A row for each study and for each input in which there was none.

    Raises:
        InputError: it cannot be written.
    """
    manifests = {name: read_json(place / MANIFEST) for name, place in done.items()}
    volumes_of = [found.get("volume_ml", {}) for found in manifests.values()]
    classes = dict.fromkeys(name for volumes in volumes_of for name in volumes)
    rows = []
    for name in dict.fromkeys([*(study.name for study in studies), *failed]):
        found = manifests.get(name, {})
        volumes = [found.get("volume_ml", {}).get(of) for of in classes]
        rows.append(
            [
                name,
                "done" if found else "failed",
                found.get("seconds", ""),
                *("" if volume is None else volume for volume in volumes),
                failed.get(name, ""),
            ]
        )
    head = ["study", "status", "seconds", *(f"{name}_ml" for name in classes), "problem"]
    with (
        writing("summary", path) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([head, *rows])
