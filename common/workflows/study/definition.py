"""What a study file says: which bundles with which overrides, on which data, and for how long."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ...data import named_classes
from ...errors import InputError, check_choice, listed, nearest
from ...files import read_json
from ..overrides import check_id, read_configs

STUDY = {
    "title": str,
    "data": dict,
    "budget": dict,
    "plan": (bool, dict),
    "overrides": dict,
    "inference": dict,
    "rows": dict,
    "metrics": list,
    "classes": dict,
    "evaluation": dict,
    "paper": dict,
    "notes": list,
    "missing": list,
}
_OF_ROW = ("bundle", "configs", "inference")  # all else are ids of the bundle's train.json
_OF_DATA = ("folds", "seeds")  # what the others are for `disjoint_parts` is below
_PARTS = {
    "split": "ratios",
    "split_seed": "seed",
    "num_folds": "num_folds",
    "split_file": "split_file",
    "exclude": "exclude",
    "cases": "cases_file",
}
_SET_BY_RUNS = (
    *("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "checkpoint", "resume", "stage"),
    *("seed", "fold", *_PARTS),
)
# Arguments of `evaluate` that are not the study file's "evaluation".
_SET_BY_STUDY = ("predictions", "labels", "output", "classes", "label_map", "ignore_label")
_STAGES = ("liver", "tumor")  # of a cascade, in the order of their trainings
_NOT_IN_NAMES = '/\\,#:*?"<>|'  # of rows, which are folders, listed with commas and parts of ids
_BY_ROW = ("rows", "paper")  # sections with a part for each row
_Said = dict[tuple[str, ...], Path | None]  # by whom, by the names that lead there; None: the call


@dataclass(frozen=True)
class Row:
    """A method that is compared.

    Attributes:
        name: what it is called.
        bundle: the bundle's folder.
        configs: the files of its training, train.json first.
        overrides: of ids of these, with the study's and the budget's.
        inference: overrides of ids of inference.json.
        stages: of a cascade, its trainings; of anything else one without a name.
        max_epochs: of each training, where it is a number.
        label_map: the classes of the values in labels' files.
        ignore_label: the value of what does not count.
    """

    name: str
    bundle: Path
    configs: tuple[Path, ...]
    overrides: Mapping[str, Any]
    inference: Mapping[str, Any]
    stages: tuple[str, ...]
    max_epochs: int | None
    label_map: Mapping[Any, Any] | None
    ignore_label: int | None


@dataclass(frozen=True)
class Study:
    """What a study file says, checked.

    Attributes:
        content: the file with what was given in its place, as it is kept.
        dataset_dir: of the data.
        folds: to be tested one after the other; None is the one split of data without folds.
        seeds: of the trainings.
        parts: further arguments of `disjoint_parts`.
        minutes: of training that a run has, where epochs are not counted.
        rows: by name.
        classes: for `evaluate`: values of labels by the names of the classes.
    """

    content: Mapping[str, Any]
    dataset_dir: Path
    folds: tuple[int | None, ...]
    seeds: tuple[int, ...]
    parts: Mapping[str, Any]
    minutes: float | None
    rows: Mapping[str, Row]
    classes: Mapping[str, Sequence[int]] | None

    @property
    def title(self) -> str:
        return str(self.content["title"])

    @property
    def notes(self) -> list[str]:
        """Sentences on the study, the last one on the paper's rows that no library has."""
        notes = list(self.content.get("notes", []))
        if missing := self.content.get("missing"):
            notes.append(f"No library has the paper's {listed(missing)}.")
        return notes

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """Options of nnU-Net's planning; None where nothing is planned."""
        plan = self.content.get("plan", False)
        return plan if isinstance(plan, dict) else {} if plan else None


def read_study(
    file: str | Path | Sequence[str | Path],
    dataset_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Study:
    """Read a study file, and see that it can be run.

    Args:
        file: JSON; or several, of which each says what counts in place of what those before it say.
            What one of them names is looked for in its own folder, and then here; bundles also in
            the folders above its own, and in folders called bundles beside all these.
        dataset_dir: in place of the file's.
        overrides: ids of the file and their values, as {"budget#max_epochs": 10}. What follows a
            section is one name in it, as in "overrides#network_def#init_filters", or, of rows and
            of the paper's numbers, a row's name and a name in that. In whatever order they stand,
            an id is a part of what the same file, or these, say of the whole.

    Raises:
        InputError: a file cannot be read, has a key that no study has or a value that is none for
            its key, or names a bundle, a config or an id that does not exist.
    """
    files = [Path(one) for one in ([file] if isinstance(file, (str, Path)) else file)]
    whose = listed(files)
    content: dict[str, Any] = {}
    said: _Said = {}
    own = dict(overrides or {})
    if dataset_dir is not None:
        own["data#dataset_dir"] = str(dataset_dir)
    for one, given in [*((one, read_json(one)) for one in files), (None, own)]:
        for id_ in _wholes_first(given):
            path = _give(whose, content, id_, given[id_], typed=one is None)
            said = {other: by for other, by in said.items() if other[: len(path)] != path}
            said[path] = one
    content = json.loads(json.dumps(content))  # as it will be read again
    _check_content(whose, content)
    data, budget = content["data"], content.get("budget", {})
    parts = {_PARTS[name]: value for name, value in data.items() if name in _PARTS}
    for name in ("split_file", "cases"):
        if data.get(name) is not None:
            places = _places(_by(said, "data", name))
            parts[_PARTS[name]] = _found(str(data[name]), places, f"{whose}: data#{name}")
    folds = data.get("folds")
    minutes = budget.get("minutes")
    shared = {k: v for k, v in budget.items() if k != "minutes"}
    for name in content["rows"]:
        _check_name(name)
    rows = {n: _row(whose, said, n, row, content, shared) for n, row in content["rows"].items()}
    for row in rows.values():
        if minutes is not None and "max_epochs" in row.overrides:
            raise InputError(
                f"The budget has minutes ({minutes:g}), and the row {row.name} max_epochs "
                f"({row.overrides['max_epochs']}); allowed is one of them, such as --budget "
                f"\"{{'minutes': {minutes:g}}}\"."
            )
    _check_labels(rows)
    classes = content.get("classes") or named_classes(
        data["dataset_dir"], parts.get("cases_file"), next(iter(rows.values())).label_map
    )
    _check_lesions(content.get("evaluation", {}).get("lesions"), classes)
    return Study(
        content=content,
        dataset_dir=Path(data["dataset_dir"]).resolve(),
        folds=(None,) if folds is None else tuple(folds),
        seeds=tuple(_seeds(content)),
        parts=parts,
        minutes=minutes,
        rows=rows,
        classes=classes,
    )


def _wholes_first(ids: Iterable[str]) -> list[str]:
    """Ids in an order in which what is said of a part does not get lost: JSON has none."""
    return sorted(ids, key=lambda id_: id_.count("#"))


def _put(part: dict[str, Any], id_: str, value: Any) -> None:
    """Set an id, in place of what was said of it and of its parts."""
    for below in [other for other in part if other.startswith(f"{id_}#")]:
        del part[below]
    part[id_] = value


def _merged(*given: Mapping[str, Any]) -> dict[str, Any]:
    """Ids and values, of which the later ones count more."""
    merged: dict[str, Any] = {}
    for values in given:
        for id_ in _wholes_first(values):
            _put(merged, id_, values[id_])
    return merged


def _give(
    whose: str, content: dict[str, Any], id_: str, value: Any, typed: bool
) -> tuple[str, ...]:
    """Put a value in the place of what a study says.

    Args:
        typed: on the command line, which makes _ of each - in a row's name.

    Returns:
        The names that lead to it.

    Raises:
        InputError: there is no such section or row, two rows may be meant, or it has no parts.
    """
    section, *names = id_.split("#")
    if names and section not in STUDY:
        raise InputError(
            f"{whose} has no {section}, of which {id_} is given a value{nearest(section, STUDY)}."
        )
    depth = 2 if section in _BY_ROW else 1
    if section == "rows" and names:
        rows = content["rows"] if isinstance(content.get("rows"), dict) else {}
        meant = [row for row in rows if typed and names[0] in (row, row.replace("-", "_"))]
        if len(meant) > 1:
            raise InputError(
                f"{id_} may be of the rows {listed(meant)}, which the command line cannot tell "
                "apart; allowed is to say it in a file."
            )
        names[:1] = meant or names[:1]
        if len(names) > 1 and names[0] not in rows:
            raise InputError(f"{whose} has no row {names[0]}{nearest(names[0], rows)}.")
        if names[1:2] == ["inference"]:
            depth = 3
    inner = "#".join(names[depth - 1 :])  # one name, as network_def#init_filters of a bundle is
    *places, last = [section, *names[: depth - 1], *([inner] if inner else [])]
    part: Any = content
    for name in places:
        if name not in part or isinstance(part[name], bool):  # a plan may be true
            part[name] = {}
        part = part[name]
        if not isinstance(part, dict):
            raise InputError(
                f"{whose} has {name} {part!r}, of which {id_} is given a value; allowed is an "
                "object."
            )
    _put(part, last, copy.deepcopy(value))
    return (*places, last)


def _check_content(whose: str, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if name not in STUDY:
            raise InputError(f"{whose} has {name!r}{nearest(name, STUDY)}.")
        if not isinstance(value, STUDY[name]):  # type: ignore[arg-type]
            raise InputError(f"{whose}: {name} is {value!r}; allowed is {_kind(STUDY[name])}.")
    for name in ("title", "data", "rows"):
        if not content.get(name):
            raise InputError(f"{whose} has no {name}; needed are title, data and rows.")
    data = content["data"]
    for name in data:
        if name not in ("dataset_dir", *_OF_DATA, *_PARTS):
            allowed = ["dataset_dir", *_OF_DATA, *_PARTS]
            raise InputError(f"{whose} has data#{name}{nearest(name, allowed)}.")
    where = data.get("dataset_dir", "$REQUIRED")
    if not isinstance(where, str) or where.startswith("$"):
        raise InputError(f"data#dataset_dir is {where}; needed is a folder, by --dataset_dir DIR.")
    _check_numbers("data#seeds", _seeds(content))
    if data.get("folds") is not None:
        _check_numbers("data#folds", data["folds"])
    _check_measures(content)
    minutes = content.get("budget", {}).get("minutes", 1)
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not minutes > 0:
        raise InputError(f"budget#minutes is {minutes!r}; allowed are numbers above 0.")


def _check_measures(content: Mapping[str, Any]) -> None:
    """See, days before they are needed, that there are such metrics and options."""
    from ...evaluation import evaluate
    from ...evaluation.comparison import LESION_DICE
    from ...evaluation.evaluate import BETTER

    options = content.get("evaluation", {})
    known = [p for p in inspect.signature(evaluate).parameters if p not in _SET_BY_STUDY]
    for name in options:
        if name not in known:
            raise InputError(f"The study sets evaluation#{name}{nearest(name, known)}.")
    for metric in content.get("metrics", []):
        check_choice("metric", metric, [*BETTER, LESION_DICE])
        if metric == LESION_DICE and not (options.get("lesions") and len(_seeds(content)) == 1):
            raise InputError(
                f"The study compares {LESION_DICE}; needed are evaluation#lesions, the names of "
                "their classes, and one seed."
            )


def _check_lesions(lesions: Any, classes: Mapping[str, Sequence[int]] | None) -> None:
    from ...evaluation.evaluate import check_lesions

    if lesions and classes is None:
        raise InputError(
            f"evaluation#lesions is {lesions!r}, and neither the study nor a dataset.json says "
            'which values these are; needed are classes, as in {"tumour": [2]}.'
        )
    check_lesions(lesions, classes or (), "evaluation#lesions")


def _seeds(content: Mapping[str, Any]) -> list[int]:
    seeds: list[int] = content["data"].get("seeds", [0])
    return seeds


def _check_numbers(id_: str, numbers: Any) -> None:
    whole = isinstance(numbers, list) and all(type(x) is int and x >= 0 for x in numbers)
    if not whole or not numbers or len(set(numbers)) < len(numbers):
        raise InputError(
            f"{id_} is {numbers!r}; allowed are different whole numbers from 0, as in [0, 1]."
        )


def _check_name(name: str) -> None:
    if not name.strip(" .-") or name[0] in ".-" or set(name) & set(_NOT_IN_NAMES):
        raise InputError(
            f"A row is called {name!r}, which is to be a folder; allowed are names without "
            f"{' '.join(_NOT_IN_NAMES)} that begin with neither . nor -."
        )


def _row(
    whose: str,
    said: _Said,
    name: str,
    row: Any,
    content: Mapping[str, Any],
    budget: Mapping[str, Any],
) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("bundle"), str):
        raise InputError(f'{whose}: the row {name} has no bundle; needed is {{"bundle": NAME}}.')
    bundle = _bundle(_by(said, "rows", name, "bundle"), name, row["bundle"])
    configs = bundle / "configs"
    names, own_inference = row.get("configs", []), row.get("inference", {})
    if not isinstance(names, list) or not all(isinstance(file, str) for file in names):
        raise InputError(f"The row {name} has configs {names!r}; allowed are names of files.")
    if not isinstance(own_inference, dict):
        raise InputError(f"The row {name} has inference {own_inference!r}; allowed is an object.")
    places = [configs, bundle, *_places(_by(said, "rows", name, "configs"))]
    files = [configs / "train.json", *(_found(n, places, f"The row {name}") for n in names)]
    training = read_configs(files)
    own = {id_: value for id_, value in row.items() if id_ not in _OF_ROW}
    overrides = _merged(content.get("overrides", {}), budget, own)
    _override(training, overrides, f"The row {name}", files[0])
    inference = _merged(content.get("inference", {}), own_inference)
    _override(
        read_configs([configs / "inference.json"]),
        inference,
        f"The inference of the row {name}",
        configs / "inference.json",
    )
    epochs = training.get("max_epochs")
    return Row(
        name=name,
        bundle=bundle,
        configs=tuple(files),
        overrides=overrides,
        inference=inference,
        stages=_STAGES if "stage" in training else ("",),
        max_epochs=epochs if type(epochs) is int else None,
        label_map=training.get("label_map"),
        ignore_label=training.get("ignore_label"),
    )


def _by(said: _Said, *path: str) -> Path | None:
    """The file that says what these names lead to; None where the call does."""
    wholes = (path[:depth] for depth in range(len(path), 0, -1))
    return next(said[whole] for whole in wholes if whole in said)


def _places(file: Path | None) -> list[Path]:
    """Where to look for what a file names."""
    return list(dict.fromkeys([*([file.parent] if file else []), Path()]))


def _bundle(file: Path | None, row: str, name: str) -> Path:
    folders = dict.fromkeys([*(file.resolve().parents if file else []), Path().resolve()])
    places = [folder for parent in folders for folder in (parent, parent / "bundles")]
    for place in places:
        if all((place / name / f"configs/{x}.json").is_file() for x in ("train", "inference")):
            return (place / name).resolve()
    known = {x.parents[1].name for place in places for x in place.glob("*/configs/train.json")}
    raise InputError(f"The row {row} has the bundle {name}{nearest(name, sorted(known))}.")


def _found(name: str, places: Iterable[Path], whose: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return (place / name).resolve()
    raise InputError(
        f"{whose} names {name}, which is in none of {listed(places)}; needed is a file."
    )


def _override(config: ConfigParser, overrides: Mapping[str, Any], whose: str, file: Path) -> None:
    """Set ids of a config.

    Raises:
        InputError: an id is none of the config's, or one that a run sets itself.
    """
    for id_, value in overrides.items():
        if id_.partition("#")[0] in _SET_BY_RUNS:
            raise InputError(f"{whose} sets {id_}, which each run sets itself; allowed are others.")
        check_id(config, id_, whose, file)
        config[id_] = copy.deepcopy(value)  # into which later ids go


def _kind(kind: Any) -> str:
    names = {str: "a text", dict: "an object", list: "a list", bool: "true or false"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(names[one] for one in kinds)


def _check_labels(rows: Mapping[str, Row]) -> None:
    """See that all are compared with the same labels."""
    (first, *others) = rows.values()
    for row in others:
        for name in ("label_map", "ignore_label"):
            one, other = getattr(first, name), getattr(row, name)
            if one != other:
                raise InputError(
                    f"The row {first.name} has {name} {one}, and {row.name} {other}; allowed is "
                    "one for all, which are compared with the same labels."
                )
