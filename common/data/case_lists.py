"""Cases by their names, in lists that people write."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from ..errors import InputError, listed
from ..files import parse_json, read_bytes
from .formats import without_ending
from .layouts import Case, DataSet, Split, case_key, case_names, distinct_names, say_once

_LISTS = Path(__file__).parent / "lists"
_OF_IRCADB = "lits_without_ircadb"
_CASES_OF_IRCADB = 20
_IRCADB = re.compile(r"3d-?ircadb", re.IGNORECASE)


def without(data: DataSet, exclude: Any, where: str | Path) -> DataSet:
    """The data set less the cases that are named, see `split_cases`.

    Raises:
        InputError: a name is of no case, or of several, or a file is no list of names.
    """
    if exclude is None or exclude in ("", [], ()):
        return data
    names, all_known = _excluded_names(exclude)
    index = NameIndex(data.cases)
    found = {name: index.find(name) for name in names}
    unknown = [name for name, cases in found.items() if not cases]
    if unknown and all_known:
        raise InputError(
            f"exclude names {listed(map(repr, unknown))}, of which {where} has no case; allowed "
            "are names of its cases, as of their labels without the ending, a text or JSON file of "
            f"them, or one of the lists {', '.join(_lists())}."
        )
    if len(unknown) == len(names):
        raise InputError(
            f"exclude is {exclude!r}, and {where} has no case of that list; allowed is none (None)."
        )
    if several := [name for name, cases in found.items() if len(cases) > 1]:
        raise InputError(f"exclude names {listed(several)}, which several cases are called.")
    out = {case_key(case) for cases in found.values() for case in cases}
    kept = [case_key(case) not in out for case in data.cases]
    say_once([f"Of the {len(kept)} cases of {where} exclude leaves out {kept.count(False)}."])
    return data._replace(
        cases=list(compress(data.cases, kept)),
        folds=None if data.folds is None else list(compress(data.folds, kept)),
        parts=None
        if data.parts is None
        else {
            split: [c for c in part if case_key(c) not in out] for split, part in data.parts.items()
        },
    )


def check_ircadb(data: DataSet, split: Split, where: str | Path) -> None:
    """Keep scans that are in LiTS and in 3D-IRCADb-01 from being trained and tested on.

    Where a data set has LiTS's of them to train on, or 3D-IRCADb-01 to test on, the log says what
    the other has to be.

    Raises:
        InputError: it has both.
    """
    index = NameIndex(data.cases)
    names, _ = _excluded_names(_OF_IRCADB)
    of_lits = {case_key(case): index.name(case) for name in names for case in index.find(name)}
    ircadb = [index.name(case) for case in data.cases if any(map(_IRCADB.search, case_names(case)))]
    if of_lits and ircadb:
        raise InputError(
            f"{where} has 3D-IRCADb-01's {ircadb[0]}, and of LiTS what are reported to be the same "
            f"scans: {listed(of_lits.values())}; allowed are those of one, for which "
            f"exclude {_OF_IRCADB} leaves out LiTS's."
        )
    if len(of_lits) == _CASES_OF_IRCADB and split == "training":
        say_once(
            [
                f"{where} has LiTS's cases 28 to 47, which are reported to be 3D-IRCADb-01's: what "
                f"is trained with them cannot be tested on that; exclude {_OF_IRCADB} leaves them "
                "out."
            ]
        )
    if ircadb and split == "test":
        say_once(
            [
                f"{where} is 3D-IRCADb-01, whose scans are reported to be LiTS's cases 28 to 47: "
                "this tests what was trained without them, or on other data, alone."
            ]
        )


def _excluded_names(exclude: Any) -> tuple[list[str], bool]:
    """Names, and whether each has to be of a case: a list of ours has several spellings of each."""
    if isinstance(exclude, (list, tuple)):
        return [str(name) for name in exclude], True
    path = _lists().get(str(exclude), Path(str(exclude)))
    if not os.path.isfile(path):  # which, unlike Path's, takes a name too long for one that is not
        return [str(exclude)], True
    if path.suffix.lower() == ".json":
        names = read_any_json(path)
        if not are_names(names):
            raise InputError(f"{path} holds no list of names; allowed is [NAME, ...].")
    else:
        lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
        names = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
    return names, str(exclude) not in _lists()


def _lists() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_LISTS.glob("*.txt"))}


class NameIndex:
    """Cases by what they may be called; what a case is called first goes before all else.

    Cases of one name are called by their folders too: patient_1/seg, or patient_1.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._first: dict[str, list[Case]] = defaultdict(list)
        self._other: dict[str, list[Case]] = defaultdict(list)
        self._name: dict[Any, str] = {}
        for case, name in zip(cases, distinct_names(cases), strict=True):
            self._name[case_key(case)] = name
            self._first[name].append(case)
            folder = name.rpartition("/")[0]
            for other in (*case_names(case), *([folder] if folder else [])):
                if other != name:
                    self._other[other].append(case)

    def find(self, name: str) -> list[Case]:
        """The cases that are called so, or as a file so called: none, one or several."""
        for spelled in (name, without_ending(name)):
            if found := self._first.get(spelled) or self._other.get(spelled):
                return found
        return []

    def name(self, case: Case) -> str:
        """What one of the cases is called first."""
        return self._name[case_key(case)]


def are_names(names: Any) -> bool:
    """Whether this is a list of strings."""
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def read_any_json(path: Path) -> Any:
    """What a JSON file holds, be it an object or not.

    Raises:
        InputError: as `read_bytes` or `parse_json`.
    """
    return parse_json(read_bytes(path), str(path))
