"""A bundle's own inference workflow, over chosen images, with its masks where they are wanted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from monai.data import FolderLayoutBase
from monai.transforms import Compose
from numpy.typing import NDArray

from ...checkpoints import members
from ...data.dicom_source import Maker
from ...errors import InputError
from ...files import read_json
from ...transforms import CheckInputd
from ...zoo.archives import sha256
from ..export import quiet
from .options import Options, chosen, config_overrides, split
from .studies import Study

_NEEDED = ("datalist", "masks", "preprocessing", "postprocessing", "handlers", "evaluator", "run")
_SAVER, _CHECK = "SaveImaged", "common.transforms.CheckInputd"
_EXPLAIN = "common.errors.explain_input_errors"  # its hooks are for a process of the bundle alone
_LAYOUTS = ("masks", "probability_maps")


class Layout(FolderLayoutBase):
    """The file of each study's mask, in place of the bundle's own `OutputLayout`.

    Args:
        files: of each image, by its own file, the first of several.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)

    def filename(self, subject: str = "", idx: int | None = None) -> Path:
        return self.files[subject]

    def plan(self, images: Sequence[Any]) -> dict[str, Path]:
        return dict(self.files)

    def todo(self, images: Sequence[Any], overwrite: bool) -> list[Any]:
        return list(images)


class Bundle:
    """A bundle that segments.

    Args:
        folder: the bundle's.
        options: what was chosen.

    Attributes:
        name, version: the bundle's.
        spatial_dims: 2 for pictures, 3 for volumes.
        weights: the files of its weights, or of those that were chosen, and their SHA-256.

    Raises:
        InputError: it is none that can be driven, has no weights, or an option is of nothing in it.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.options = options
        self.name = folder.name
        self.file = folder / "configs/inference.json"
        if not self.file.is_file():
            raise InputError(f"{folder} is no bundle: it has no configs/inference.json.")
        config = read_json(self.file)
        self.metadata = read_json(folder / "configs/metadata.json")
        for name in ("preprocessing", "postprocessing"):
            if not isinstance(_argument(config.get(name), "transforms", None), list):
                raise InputError(f"{self.file} has no {name}#transforms; needed is a list.")
        for name in _NEEDED:
            if name not in config:
                raise InputError(
                    f"{self.file} has no {name}; allowed are bundles of this collection, and such "
                    "as `python -m common zoo verify` passes."
                )
        self.overrides = config_overrides(options, self.name, config)
        self.version = str(self.metadata.get("version"))
        self.spatial_dims = int(_argument(config["datalist"], "spatial_dims", 3))
        self.endings = {
            name: str(_argument(config[name], "extension", ".nii.gz"))
            for name in _LAYOUTS
            if name in config
        }
        if options.dicom and self.spatial_dims == 2:
            raise InputError(
                f"{options.dicom[0]} is True, and {self.name} is for radiographs, which have no "
                "place in the patient to refer to; allowed is False."
            )
        if options.force_split and not split(config):
            raise InputError(
                f"force_split is True, and {self.name} has no windows to split an image into; "
                "allowed is False."
            )
        self.checkpoint = options.checkpoint or [str(folder / "models/model.pt")]
        files = members(self.checkpoint)
        if missing := [file for file in files if not Path(file).is_file()]:
            raise InputError(
                f"{self.name} has no weights: there is no {missing[0]}; train it, or name a "
                "checkpoint."
            )
        self.weights = {file: sha256(file) for file in files}

    @property
    def maker(self) -> Maker:
        return Maker(self.name, self.version, next(iter(self.weights.values())))

    def inside(self, file: str) -> str:
        """A file's path; of one of the bundle's, whose folder may be gone by then, that in it."""
        path = Path(file)
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def run(self, studies: Sequence[Study], work: Mapping[str, Path], watch: Any) -> Run:
        """A workflow over studies, one after the other, which ends at the first that fails.

        Args:
            studies: one or more.
            work: of each, by its name, the folder where its mask goes, as STEM.ENDING.
            watch: a handler of the evaluator's.

        Raises:
            InputError: an override's id is not in the config.
        """
        with quiet("monai.bundle.workflows"):  # it warns that it leaves logging as it is
            workflow = ConfigWorkflow(str(self.file), workflow_type="infer", logging_file=False)
        parser = workflow.parser
        # Paths by these: texts of a config may be expressions or references.
        handed: dict[str, Any] = {
            "root_": str(self.folder),
            "images_": [study.image for study in studies],
            "output_": str(next(iter(work.values()))),
            "checkpoint_": self.checkpoint,
            "watch_": watch,
        }
        given = {
            "bundle_root": "$root_",
            "datalist": "$images_",
            "output_dir": "$output_",
            "checkpoint": "$checkpoint_",
            "strict": True,
            "overwrite": True,
        }
        for name, ending in self.endings.items():
            postfix = "" if name == "masks" else "_probabilities"
            given[name] = f"${name}_"
            handed[f"{name}_"] = Layout(
                {
                    study.file: work[study.name] / f"{study.stem}{postfix}{ending}"
                    for study in studies
                }
            )
        parser.globals.update(handed)
        for id_, value in (given | self.overrides).items():
            try:
                parser[id_] = value
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self.name}'s inference.json has no {id_}; allowed are ids that it has."
                ) from error
        parser["run"] = [step for step in parser["run"] if not _is(step, _EXPLAIN)]
        handlers = [x for x in parser["handlers"] if not _is(x, "ignite.handlers.ProgressBar")]
        parser["handlers"] = [*handlers, "$watch_"]
        self._check_modality(parser)
        if self.options.roi_subset is not None:
            self._filter(parser)
        if self.options.force_split:
            split(parser.config["inferer"])
            split(parser.config["postprocessing"])
        workflow.initialize()
        return Run(workflow, self)

    def _check_modality(self, parser: Any) -> None:
        """Have what may not be CT refused where the modality is CT, once it is loaded."""
        steps = parser["preprocessing#transforms"]
        at = next((i for i, step in enumerate(steps) if _is(step, _CHECK)), None)
        if at is None or "modality" not in parser:
            return
        check = {
            "_target_": "common.transforms.CheckHounsfieldd",
            "_disabled_": "$@modality != 'CT'",
            "keys": "image",
        }
        parser["preprocessing#transforms"] = [*steps[: at + 1], check, *steps[at + 1 :]]

    def _filter(self, parser: Any) -> None:
        """Have only the chosen classes in the mask."""
        steps = parser["postprocessing#transforms"]
        savers = (i for i, x in enumerate(steps) if _is(x, _SAVER) and x.get("keys") == "pred")
        at = max(savers, default=len(steps))
        keep = {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": "$kept_"}
        parser["postprocessing#transforms"] = [*steps[:at], keep, *steps[at:]]


class Run:
    """A workflow that is ready to run, and what its config says once the weights are read.

    Attributes:
        all_classes: the names of all classes, and their values in a mask.
        classes: those of them that were chosen.
        modality: of DICOM series that are taken; None takes any.
        series_uid: the series that is, where it was chosen.

    Raises:
        InputError: as the config's own checks, or roi_subset names no class.
    """

    def __init__(self, workflow: ConfigWorkflow, bundle: Bundle) -> None:
        self._workflow = workflow
        parser = workflow.parser
        self.modality = self._value("modality")
        self.series_uid = self._value("series_uid")
        settings = self._value("settings") or {}
        number = self._value("num_classes")
        outputs = bundle.metadata["network_data_format"]["outputs"]["pred"]
        said = settings.get("label_names") or list(outputs["channel_def"].values())
        number = len(said) if number is None else max(int(number), 2)  # 1 is a sigmoid's
        if len(said) != number:
            said = ["background", *(f"class {value}" for value in range(1, number))]
        self.all_classes = {str(said[value]): value for value in range(1, number)}
        self.classes = chosen(bundle.options.roi_subset, self.all_classes)
        parser.globals["kept_"] = list(self.classes.values())

    @property
    def is_ct(self) -> bool:
        """Whether values are HU."""
        return bool(self.modality == "CT")

    def __call__(self) -> None:
        """Run the steps of the config; the evaluator is among them."""
        path = list(sys.path)
        try:
            self._workflow.run()
        finally:
            sys.path[:] = path  # to which MONAI adds the bundle's folder

    def original(self, study: Study) -> NDArray[np.float32]:
        """The values of a study's image on its own grid, as a mask has it, of the first channel.

        They are read as preprocessing begins.

        Raises:
            InputError: as `LoadCheckedImaged`.
        """
        steps = self._workflow.parser.get_parsed_content("preprocessing").transforms
        last = next(i for i, step in enumerate(steps) if isinstance(step, CheckInputd))
        image = Compose(steps[: last + 1])({"image": study.image})["image"]
        values: NDArray[np.float32] = image[0].numpy(force=True).astype(np.float32)
        return values

    def _value(self, id_: str) -> Any:
        parser = self._workflow.parser
        return parser.get_parsed_content(id_) if id_ in parser else None


def _argument(component: Any, name: str, default: Any) -> Any:
    """What a config gives a component as an argument."""
    return component.get(name, default) if isinstance(component, dict) else default


def _is(step: Any, target: str) -> bool:
    return isinstance(step, dict) and step.get("_target_") == target
