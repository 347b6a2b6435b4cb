"""What a study leaves: masks, a picture, statistics, DICOM objects, and a manifest of them."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ... import __version__
from ...data.dicom import read_series
from ...data.dicom_codes import is_lesion
from ...data.dicom_seg import write_dicom_seg
from ...data.dicom_source import Segment
from ...data.geometry import spacing_of
from ...data.rtstruct import write_rtstruct
from ...data.writers import grey_levels
from ...errors import InputError, first_line
from ...evaluation import draw_preview, findings
from ...evaluation.scenes import colour_of, scene_of
from ...files import read_json
from .bundle import Bundle, Run
from .steps import Steps
from .studies import MANIFEST, PAGE, Study

PREVIEW, STATISTICS, DICOM_SEG, RTSTRUCT = (
    "preview.png",
    "statistics.json",
    "segmentation.dcm",
    "rtstruct.dcm",
)
_logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "monai", "numpy", "nibabel")
_OF_DICOM = ("pydicom", "highdicom")


class Results:
    """The results of a study, in a folder of their own until they are complete.

    Args:
        bundle: what segmented it.
        run: with what its config says.
        study: what was segmented.
        labels: the label map on the image's own grid, (x, y) or (x, y, z).
        affine: of it, to RAS, mm; None of a radiograph.
        work: the folder, with the mask that the bundle wrote.
        steps: those that were done; these here are added.

    Attributes:
        failed: of what could not be made, why.
    """

    def __init__(
        self,
        bundle: Bundle,
        run: Run,
        study: Study,
        labels: NDArray[np.integer],
        affine: NDArray[np.float64] | None,
        work: Path,
        steps: Steps,
    ) -> None:
        self._bundle = bundle
        self._run = run
        self._study = study
        self._labels = labels
        self._affine = affine
        self._work = work
        self._steps = steps
        self._files: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def write(self) -> None:
        """Make all that was chosen, and put it where the results go.

        What cannot be made is in `failed`; all else is kept.

        Raises:
            InputError: nothing can be put there.
        """
        options = self._bundle.options
        self._files["mask"] = f"{self._study.stem}{self._bundle.endings['masks']}"
        ending = self._bundle.endings.get("probability_maps", "")
        extra = self._work / f"{self._study.stem}_probabilities{ending}"
        if extra.is_file():
            self._files["probabilities"] = extra.name
        makers: dict[str, Callable[[], Any]] = {
            "statistics": self._statistics,
            "preview": self._preview,
            "dicom_seg": self._dicom_seg,
            "rtstruct": self._rtstruct,
        }
        for name, make in makers.items():
            if getattr(options, name):
                self._attempt(name, make)
        if not options.ml:
            self._attempt("masks", self._split)
        self._attempt("manifest", self._manifest)
        if "manifest" in self.failed:
            raise InputError(self.failed["manifest"])
        _publish(self._work, self._study, _names(self._files))

    @cached_property
    def voxels(self) -> dict[str, int]:
        """How many each class has."""
        return {
            name: int(np.count_nonzero(self._labels == value))
            for name, value in self._run.classes.items()
        }

    def _attempt(self, name: str, make: Callable[[], Any]) -> None:
        try:
            made = make()
        except Exception as error:
            self.failed[name] = self._why(name, error)
        else:
            if made is not None:
                self._files[name] = made
        self._steps.ended(name, "cpu")

    def _why(self, name: str, error: Exception) -> str:
        """Why something could not be made; of what nobody foresaw the log has the traceback."""
        if isinstance(error, InputError):
            return str(error)
        what = f"The {name} of {self._study.file}"
        if isinstance(error, OSError):
            return f"{what} cannot be written ({error.strerror or first_line(error)})."
        _logger.error("%s failed.", what, exc_info=error)
        return f"{what} cannot be made ({type(error).__name__}: {first_line(error)})."

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """The image, which is read anew: what the bundle has of it by now is on another grid."""
        values = self._run.original(self._study)
        if values.shape != self._labels.shape:
            raise ValueError(f"The image is {values.shape}, and its mask {self._labels.shape}.")
        return values

    @cached_property
    def _series(self) -> dict[str, Any]:
        if not self._study.is_dicom:
            raise InputError(
                f"{self._study.file} is no DICOM series, to which "
                f"{' and '.join(self._bundle.options.dicom)} refer; allowed are DICOM files, "
                "folders and zip files."
            )
        return read_series(self._study.file, self._run.modality, self._run.series_uid)

    def _statistics(self) -> str:
        spacing, axial = None, 2
        if self._affine is not None:
            spacing = spacing_of(self._affine, 3)
            towards = nib.orientations.io_orientation(self._affine)[:, 0]
            axial = int(np.flatnonzero(towards == 2)[0])
        classes = self._run.classes
        content = {
            "unit": "HU" if self._run.is_ct else "as stored",
            "lengths": "pixels" if spacing is None else "mm",
            "spacing_mm": spacing,
            "axial_axis": None if spacing is None else axial,
            "classes": findings(
                self._labels,
                self._values,
                classes,
                [name for name in classes if is_lesion(name)],
                spacing,
                axial,
            ),
        }
        _write_json(self._work / STATISTICS, content)
        return STATISTICS

    def _preview(self) -> str:
        draw_preview(
            scene_of(self._values, self._affine, {"labels": self._labels}),
            {value: name for name, value in self._run.classes.items()},
            self._work / PREVIEW,
            self._study.name,
            ct=self._run.is_ct,
        )
        return PREVIEW

    def _dicom_seg(self) -> str:
        write_dicom_seg(self._work / DICOM_SEG, *self._of_dicom())
        return DICOM_SEG

    def _rtstruct(self) -> str:
        write_rtstruct(self._work / RTSTRUCT, *self._of_dicom())
        return RTSTRUCT

    def _of_dicom(self) -> tuple[Any, ...]:
        assert self._affine is not None  # of a radiograph it is refused before
        segments = [
            Segment(value, name, colour_of(value)) for name, value in self._run.classes.items()
        ]
        return self._labels, self._affine, self._series, segments, self._bundle.maker

    def _split(self) -> dict[str, str]:
        """A mask of 0 and 1 for each class (a picture's of 0 and 255) in place of the one mask."""
        whole = self._work / self._files["mask"]
        ending = self._bundle.endings["masks"]
        files: dict[str, str] = {}
        for name, value in self._run.classes.items():
            stem = re.sub(r"[^\w-]+", "_", name).strip("_") or "class"
            file = f"{stem}{ending}"
            if file in {*files.values(), PREVIEW} or (self._work / file) == whole:
                file = f"{stem}_{value}{ending}"
            if ending == ".png":
                with Image.open(whole) as picture:
                    level = grey_levels(len(self._run.all_classes) + 1)[value]
                    part = (np.asarray(picture) == level).astype(np.uint8) * 255
                Image.fromarray(part).save(self._work / file)
            else:
                image = nib.load(whole)
                mask = (np.asarray(image.dataobj) == value).astype(np.uint8)
                nib.save(nib.Nifti1Image(mask, image.affine, image.header), self._work / file)
            files[name] = file
        whole.unlink()
        del self._files["mask"]
        return files

    def _manifest(self) -> None:
        spacing = None if self._affine is None else spacing_of(self._affine, 3)
        packages = _PACKAGES + (_OF_DICOM if self._study.is_dicom else ())
        voxels = self.voxels
        millilitres = None if spacing is None else math.prod(spacing) / 1000
        content = {
            "study": self._study.name,
            "input": self._study.image,
            "files": self._files,
            "failed": self.failed,
            "classes": self._run.classes,
            "num_classes": 1 + len(self._run.all_classes),
            "modality": self._run.modality,
            "series_uid": self._run.series_uid,
            "voxels": voxels,
            "volume_ml": {
                name: None if millilitres is None else number * millilitres
                for name, number in voxels.items()
            },
            "bundle": {"name": self._bundle.name, "version": self._bundle.version},
            "weights": [
                {"file": self._bundle.inside(file), "sha256": digest}
                for file, digest in self._bundle.weights.items()
            ],
            "options": asdict(self._bundle.options),
            "versions": {
                "monai-mamba-bundles": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in packages},
            },
            "seconds": self._steps.seconds,
            "steps": self._steps.found,
        }
        _write_json(self._work / MANIFEST, content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=4, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _publish(work: Path, study: Study, names: set[str]) -> None:
    """Move results to their folder, the manifest last; what an earlier run left there goes.

    Other files there, which are somebody's, stay; what is half written in `work` stays there.

    Raises:
        InputError: they cannot be put there.
    """
    target = study.folder
    try:
        target.mkdir(parents=True, exist_ok=True)
        manifest = target / MANIFEST
        earlier = read_json(manifest).get("files", {}) if manifest.is_file() else {}
        if earlier:  # the page first: without the manifest nobody would know that it is ours
            (target / PAGE).unlink(missing_ok=True)
        manifest.unlink(missing_ok=True)  # until these are complete there are no results
        for name in _names(earlier) - names:
            (target / name).unlink(missing_ok=True)
        for name in (*sorted(names), MANIFEST):
            os.replace(work / name, target / name)
    except OSError as error:
        raise InputError(
            f"The results of {study.file} cannot be put into {target} "
            f"({error.strerror or first_line(error)})."
        ) from error


def _names(files: Any) -> set[str]:
    """The files that a manifest names, of this folder alone."""
    found = files.values() if isinstance(files, dict) else ()
    names = {name for x in found for name in (x.values() if isinstance(x, dict) else [x])}
    return {str(name) for name in names if Path(str(name)).name == str(name)}
