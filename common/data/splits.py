"""Which part of a data set a case is in: training, validation or test."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import partition_dataset

from ..errors import InputError, are_numbers, listed
from .case_lists import NameIndex, are_names, check_ircadb, read_any_json, without
from .layouts import (
    SPLITS,
    Case,
    DataSet,
    Split,
    case_key,
    find_cases,
    require_cases,
    say_once,
)

_NNUNETS = "splits_final.json"
_OURS = '{"training": [NAME, ...], "validation": [NAME, ...], "test": [NAME, ...]}'
_THEIRS = '[{"train": [NAME, ...], "val": [NAME, ...]}, ...]'
_SAME = "{} has no cases for test alone: in each fold those for validation are tested."

_Parts = Mapping[Split, Sequence[Case]]


def split_cases(
    dataset_dir: str | Path,
    split: Split,
    ratios: Sequence[float] = (7, 1, 2),
    seed: int = 0,
    fold: int | None = None,
    num_folds: int = 5,
    split_file: str | Path | None = None,
    exclude: str | Path | Sequence[str] | None = None,
    cases_file: str | Path | None = None,
    at_most: int | None = None,
) -> list[Case]:
    """The part of `find_cases` that `split` names.

    The first of these says which cases these are, and `ratios` and `seed` change nothing then:

    - `split_file`;
    - the folds of a data set that comes in folds (Auto3DSeg): `fold`, or 0, validates what the
      others train; parts for validation and test that are published beside them do not train;
    - the parts of a data set that comes split (CirrMRI600+; see `DataSet.parts`). Where it has no
      part for validation, this is drawn from its training part by the first two `ratios`;
    - where `fold` is given, nnU-Net's splits_final.json in the folder;
    - else they are drawn at random by `seed`, by `ratios` or into folds. A part of which `ratios`
      would leave nothing, of three to five cases say, gets one case of the largest.

    Args:
        dataset_dir: see `find_cases`.
        split: "training", "validation" or "test".
        ratios: relative sizes of the three, in that order.
        seed: the same seed gives the same three parts, whichever is asked for.
        fold: None splits by `ratios`; a number from 0 cross-validates: of `num_folds` equal parts
            this one is the test set, the next one is for validation, all others for training. Of a
            `split_file` of nnU-Net's, or of a data set that comes in folds, it is the number there.
        num_folds: at least 3.
        split_file: JSON, ``{"training": [NAME, ...], "validation": [...], "test": [...]}``, or
            nnU-Net's splits_final.json, ``[{"train": [NAME, ...], "val": [...]}, ...]`` by `fold`,
            whose test set is its validation set. A case is called as its label or image, without
            the ending, _mask, _seg, _segmentation, _label, and a channel's number, and one of
            several of that name by its folder: patient_1/seg, or patient_1.
        exclude: names of cases that are in no part, or one name; a text or JSON file of them; or
            the name of a list that is in common/data/lists: "lits_without_ircadb" leaves out LiTS's
            cases 28 to 47, which are those of 3D-IRCADb-01, so that this tests what was not trained
            on.
        cases_file: see `find_cases`.
        at_most: so many cases of the part, the first ones; None gives all.

    Raises:
        InputError: as `find_cases`; a name is of no case, or of two; the part asked for would be
            empty; LiTS's scans of 3D-IRCADb-01 are there beside these; or an argument is not as
            above.
    """
    if at_most is not None and (type(at_most) is not int or at_most < 1):
        raise InputError(f"at_most is {at_most!r}; allowed are whole numbers from 1, and None.")
    cases = _split(
        dataset_dir, split, ratios, seed, fold, num_folds, split_file, exclude, cases_file
    )
    return cases[:at_most]


def _split(
    dataset_dir: str | Path,
    split: Split,
    ratios: Sequence[float],
    seed: int,
    fold: int | None,
    num_folds: int,
    split_file: str | Path | None,
    exclude: str | Path | Sequence[str] | None,
    cases_file: str | Path | None,
) -> list[Case]:
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; allowed are {', '.join(SPLITS)}.")
    if not are_numbers(ratios, 3, least=0) or sum(ratios) <= 0:
        raise InputError(
            f"The split is by {ratios!r}; allowed are three numbers, none below 0 and not all 0, "
            "as [7, 1, 2]."
        )
    for name, value in (("fold", fold), ("num_folds", num_folds), ("seed", seed)):
        if type(value) is not int and not (name == "fold" and value is None):
            raise InputError(f"{name} is {value!r}; allowed are whole numbers.")
    where = cases_file or dataset_dir
    data = _search.take(split, dataset_dir, cases_file)
    kept = without(data, exclude, where)
    check_ircadb(kept, split, where)
    folds_file = Path(dataset_dir) / _NNUNETS
    if split_file is not None:
        return _part(_listed_parts(Path(split_file), data, kept, fold), split, str(split_file))
    if data.folds is not None:
        if fold is None:
            say_once([f"{where} comes in folds, and fold is None: fold 0 is used."])
        return _part(_parts_of_folds(kept, fold or 0, where), split, f"fold {fold or 0} of {where}")
    if data.parts is not None:
        if fold is not None:
            raise InputError(
                f"fold is {fold}, but {where} comes with its own split; allowed is no fold (None)."
            )
        say_once([f"{where} comes split: its own parts are used, not split and split_seed."])
        return _part(_completed(kept, ratios, seed), split, f"{where}, which comes split,")
    if cases_file is None and folds_file.is_file():
        if fold is not None:
            return _part(_listed_parts(folds_file, data, kept, fold), split, str(folds_file))
        say_once([f"{folds_file} is not used: it needs a fold, and fold is None."])
    return _drawn(kept.cases, split, ratios, seed, fold, num_folds, where)


def disjoint_parts(
    dataset_dir: str | Path,
    ratios: Sequence[float] = (7, 1, 2),
    seed: int = 0,
    fold: int | None = None,
    num_folds: int = 5,
    split_file: str | Path | None = None,
    exclude: str | Path | Sequence[str] | None = None,
    cases_file: str | Path | None = None,
) -> dict[Split, dict[str, Case]]:
    """The three parts of `split_cases`, their cases by name, of which no test case is in another.

    Where folds have no cases for test alone, as nnU-Net's and Auto3DSeg's have not, a fold's cases
    are tested and nothing else, and those for validation are drawn from its training cases by the
    first two `ratios`, or by 7:1 where these leave nothing for it.

    Args:
        dataset_dir, ratios, seed, fold, num_folds, split_file, exclude, cases_file: see
            `split_cases`. A name is one that a `split_file` may call the case by.

    Raises:
        InputError: as `split_cases`.
    """
    more = (ratios, seed, fold, num_folds, split_file, exclude, cases_file)
    parts = {split: split_cases(dataset_dir, split, *more) for split in SPLITS}
    tested = _keys(parts["test"])
    if any(case_key(case) in tested for case in parts["validation"]):
        share = [*ratios[:2], 0] if min(ratios[:2]) > 0 else [7, 1, 0]
        drawn: tuple[Split, ...] = ("training", "validation")
        where = f"The training part of fold {fold or 0}"
        parts |= {
            split: _part_by_ratios(parts["training"], split, share, seed, where) for split in drawn
        }
    index = NameIndex(find_cases(dataset_dir, cases_file).cases)
    return {split: {index.name(case): case for case in part} for split, part in parts.items()}


class _Search:
    """The last search of a data set, of which each part is taken once.

    Training asks for its part and for validation's: one search of a large folder is enough, and
    both are of the same cases. Who asks for a part again may have changed the folder since.
    """

    def __init__(self) -> None:
        self.where: tuple[str, str] | None = None
        self.data: DataSet | None = None
        self.taken: set[Split] = set()

    def take(self, split: Split, dataset_dir: str | Path, cases_file: str | Path | None) -> DataSet:
        where = (os.path.abspath(dataset_dir), os.path.abspath(cases_file) if cases_file else "")
        if self.data is None or where != self.where or split in self.taken:
            found = require_cases(find_cases(dataset_dir, cases_file), cases_file or dataset_dir)
            self.where, self.data, self.taken = where, found, set()
        self.taken.add(split)
        return self.data


_search = _Search()


def _part(parts: _Parts, split: Split, where: str) -> list[Case]:
    part = parts.get(split)
    if not part:
        there = " and ".join(name for name in SPLITS if parts.get(name))
        raise InputError(
            f"{where} holds no labelled case for {split}; allowed is {there or 'none'}, or a "
            "split_file that says which cases are which."
        )
    return list(part)


def _drawn(
    cases: Sequence[Case],
    split: Split,
    ratios: Sequence[float],
    seed: int,
    fold: int | None,
    num_folds: int,
    where: str | Path,
) -> list[Case]:
    if fold is None:
        return _part_by_ratios(cases, split, ratios, seed, where)
    if not (num_folds >= 3 and 0 <= fold < num_folds):
        raise InputError(
            f"fold is {fold} of num_folds {num_folds}; allowed are 0 to num_folds - 1, of at "
            "least 3 folds."
        )
    if len(cases) < num_folds:
        raise InputError(
            f"{where} holds {len(cases)} labelled cases, too few for {num_folds} folds; "
            "give more cases or fewer folds."
        )
    folds = partition_dataset(cases, num_partitions=num_folds, shuffle=True, seed=seed)
    test, validation = folds[fold], folds[(fold + 1) % num_folds]
    parts: _Parts = {
        "training": _less(cases, _keys(test, validation)),
        "validation": validation,
        "test": test,
    }
    return list(parts[split])


def _keys(*parts: Iterable[Case]) -> set[Any]:
    return {case_key(case) for part in parts for case in part}


def _less(cases: Iterable[Case], keys: set[Any]) -> list[Case]:
    return [case for case in cases if case_key(case) not in keys]


def _part_by_ratios(
    cases: Sequence[Case], split: Split, ratios: Sequence[float], seed: int, where: str | Path
) -> list[Case]:
    parts = _by_ratios(cases, ratios, seed)
    shares = ":".join(f"{ratio:g}" for ratio in ratios)
    said = f"{where} holds {len(cases)} labelled cases, of which a split by {shares}"
    for i, part in enumerate(parts):
        if ratios[i] > 0 and not part:
            largest = max(parts, key=len)
            if len(largest) > 1:
                part.append(largest.pop())
                giver = SPLITS[parts.index(largest)]
                say_once([f"{said} leaves none for {SPLITS[i]}: it gets one of those for {giver}."])
            else:
                say_once([f"{said} leaves none for {SPLITS[i]}."])
    part = parts[SPLITS.index(split)]
    if not part:
        raise InputError(
            f"{said} leaves none for {split}; give more cases or another split, in which {split} "
            "has a share."
        )
    return part


def _by_ratios(cases: Sequence[Case], ratios: Sequence[float], seed: int) -> list[list[Case]]:
    """MONAI's three parts, and what its rounding leaves out in the largest of them."""
    parts: list[list[Case]] = partition_dataset(cases, ratios=ratios, shuffle=True, seed=seed)
    (shuffled,) = partition_dataset(cases, ratios=[1], shuffle=True, seed=seed)
    largest = max(range(len(parts)), key=lambda i: ratios[i])
    parts[largest] = parts[largest] + shuffled[sum(map(len, parts)) :]
    return parts


def _completed(data: DataSet, ratios: Sequence[float], seed: int) -> _Parts:
    """Published parts; validation is drawn from training where there is none."""
    parts = dict(data.parts or {})
    if parts.get("validation") or not parts.get("training"):
        return parts
    share = [*ratios[:2], 0]
    training = parts["training"]
    say_once(["No part for validation is published: it is drawn from the training part."])
    drawn: tuple[Split, ...] = ("training", "validation")
    return parts | {
        split: _part_by_ratios(training, split, share, seed, "The training part") for split in drawn
    }


def _parts_of_folds(data: DataSet, fold: int, where: str | Path) -> _Parts:
    """A fold for validation, all others for training; for test what is published, or validation.

    What is published for validation or test does not train in any fold.
    """
    folds = list(zip(data.cases, data.folds or (), strict=True))
    numbers = sorted({number for _, number in folds if number is not None})
    if fold not in numbers:
        raise InputError(
            f"fold is {fold}, but {where} comes in the folds {', '.join(map(str, numbers))}; "
            "allowed is one of them."
        )
    published = data.parts or {}
    test, unused = published.get("test", ()), published.get("validation", ())
    if not test:
        say_once([_SAME.format(where)])
    if unused:
        say_once([f"Of {where} the part published for validation trains nothing in its folds."])
    validation = _less((case for case, number in folds if number == fold), _keys(test))
    others = (case for case, number in folds if number != fold)
    return {
        "training": _less(others, _keys(test, unused)),
        "validation": validation,
        "test": test or validation,
    }


def _listed_parts(path: Path, data: DataSet, kept: DataSet, fold: int | None) -> _Parts:
    """The parts that a split_file names, less what is excluded."""
    content = read_any_json(path)
    names: dict[Split, list[str]]
    if isinstance(content, list):
        names = _names_of_fold(path, content, fold)
    elif fold is not None:
        raise InputError(f"fold is {fold}, but {path} has no folds; allowed is no fold (None).")
    else:
        wrong = not isinstance(content, dict) or set(content) - set(SPLITS)
        if wrong or not all(are_names(part) for part in content.values()):
            raise InputError(
                f"{path} is no split_file; allowed is {_OURS}, or nnU-Net's list {_THEIRS}."
            )
        names = content
    index, unknown, several, doubled = NameIndex(data.cases), [], [], []
    parts: dict[Split, list[Case]] = {}
    for split, listed_names in names.items():
        found = [(name, index.find(name)) for name in listed_names]
        unknown += [name for name, cases in found if not cases]
        several += [name for name, cases in found if len(cases) > 1]
        parts[split] = [case for _, cases in found for case in cases]
        spellings = defaultdict(list)
        for name, cases in found:
            if len(cases) == 1:
                spellings[case_key(cases[0])].append(name)
        doubled += [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if unknown:
        raise InputError(f"{path} names {listed(unknown)}, of which the data set has no case.")
    if several:
        raise InputError(f"{path} names {listed(several)}, which several cases are called.")
    if doubled:
        raise InputError(
            f"{path} names one case more than once: {listed(dict.fromkeys(doubled))}; allowed is "
            "once."
        )
    _refuse_shared(path, parts, isinstance(content, list), index)
    if rest := _less(data.cases, _keys(*parts.values())):
        names_of_rest = listed(map(index.name, rest))
        say_once([f"Cases that {path} does not name are left out: {names_of_rest}."])
    there = _keys(kept.cases)
    return {split: [c for c in part if case_key(c) in there] for split, part in parts.items()}


def _names_of_fold(path: Path, content: list[Any], fold: int | None) -> dict[Split, list[str]]:
    for part in content:
        wrong = not isinstance(part, dict) or not {"train", "val"} <= set(part)
        if wrong or not all(are_names(part[key]) for key in ("train", "val")):
            raise InputError(f"{path} is not nnU-Net's splits_final.json; allowed is {_THEIRS}.")
    if fold is None or not 0 <= fold < len(content):
        raise InputError(
            f"fold is {fold}, and {path} has {len(content)} folds; needed is one of them, from 0."
        )
    say_once([_SAME.format(path)])
    train, val = content[fold]["train"], content[fold]["val"]
    return {"training": train, "validation": val, "test": val}


def _refuse_shared(path: Path, parts: _Parts, tested_as_validated: bool, index: NameIndex) -> None:
    pairs = [("training", "validation"), ("training", "test"), ("validation", "test")]
    for one, other in pairs[:2] if tested_as_validated else pairs:
        keys = _keys(parts.get(other, ()))  # type: ignore[call-overload]
        if shared := [c for c in parts.get(one, ()) if case_key(c) in keys]:  # type: ignore[call-overload]
            raise InputError(
                f"{path} has {listed(map(index.name, shared))} both for {one} and for {other}; "
                "allowed is one part a case."
            )
