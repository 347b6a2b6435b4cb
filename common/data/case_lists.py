"""Cases by their names, in lists that people write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from typing import Any

from ..errors import InputError, listed
from ..files import parse_json
from .layouts import Case, DataSet, case_key, case_names, say_once

_LISTS = Path(__file__).parent / "lists"


def without(data: DataSet, exclude: Any, where: str | Path) -> DataSet:
    """The data set less the cases that are named, see `split_cases`.

    Raises:
        InputError: `exclude` is no list or file of names, or a name is of no case, or of several.
    """
    if exclude is None or exclude in ("", [], ()):
        return data
    names, all_known = _excluded_names(exclude)
    index = NameIndex(data.cases)
    found = {name: index.find(name) for name in names}
    unknown = [name for name, cases in found.items() if not cases]
    if unknown and all_known:
        raise InputError(
            f"exclude names {listed(unknown)}, of which {where} has no case; allowed are names of "
            "its cases, as of their labels without the ending."
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


def _excluded_names(exclude: Any) -> tuple[list[str], bool]:
    """Names, and whether each has to be of a case: a list of ours has several spellings of each."""
    if isinstance(exclude, (list, tuple)):
        return [str(name) for name in exclude], True
    lists = {path.stem: path for path in sorted(_LISTS.glob("*.txt"))}
    path = lists.get(str(exclude), Path(str(exclude)))
    if not path.is_file():
        raise InputError(
            f"exclude is {exclude!r}; allowed are a list of names, a text or JSON file of them, or "
            f"one of the lists {', '.join(lists)}."
        )
    if path.suffix.lower() == ".json":
        names = read_any_json(path)
        if not are_names(names):
            raise InputError(f"{path} holds no list of names; allowed is [NAME, ...].")
    else:
        lines = _bytes(path).decode("utf-8-sig", errors="replace").splitlines()
        names = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
    return names, str(exclude) not in lists


class NameIndex:
    """Cases by what they may be called; what a case is called first goes before all else."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._first: dict[str, list[Case]] = defaultdict(list)
        self._other: dict[str, list[Case]] = defaultdict(list)
        for case in cases:
            first, *others = case_names(case)
            self._first[first].append(case)
            for name in others:
                self._other[name].append(case)

    def find(self, name: str) -> list[Case]:
        """The cases that are called so: none, one or several."""
        return self._first.get(name) or self._other.get(name) or []


def are_names(names: Any) -> bool:
    """Whether this is a list of strings."""
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def read_any_json(path: Path) -> Any:
    """What a JSON file holds, be it an object or not.

    Raises:
        InputError: it cannot be read, or as `parse_json`.
    """
    return parse_json(_bytes(path), str(path))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}).") from error
