"""The networks of the collection in one table: cost, paper, licence, known complaints.

Facts are typed in `FILE`; its figures are measured by ``python -m benchmarks.catalogue``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ..blocks import Mixer
from ..errors import InputError, by_axis
from ..files import read_json, replacing

FILE = Path(__file__).parents[1] / "networks" / "networks.json"
DIMS = ("3D", "2D")
_NOTHING = "-"
# Each a field of `Figures`: the column's title, what one of its unit is worth, and its form.
_COLUMNS: dict[str, tuple[str, float, str]] = {
    "parameters": ("M parameters", 1e6, ".2f"),
    "flops": ("GFLOP", 1e9, ".1f"),
    "seconds_forward": ("s forward", 1.0, ".3g"),
    "peak_memory_bytes": ("GiB", 2**30, ".2f"),
    "seconds_training_step": ("s a step", 1.0, ".3g"),
    "peak_memory_training_bytes": ("GiB training", 2**30, ".2f"),
}
_FACTS = {
    "paper": "paper",
    "licence": "licence of the released code",
    "complaints": "known complaints",
}
_NUMBERS = {*(title for title, *_ in _COLUMNS.values()), *get_args(Mixer)}  # right in a column


@dataclasses.dataclass
class Figures:
    """What a network costs for one image; None is what was not measured.

    Attributes:
        parameters: all of them.
        flops: of a forward pass, see `common.ops.flops`.
        seconds_forward: of a forward pass in eval mode.
        peak_memory_bytes: of that, the network included.
        seconds_training_step: of forward pass, Dice and cross entropy, backward pass and AdamW.
        peak_memory_training_bytes: of that.
        machine: which the seconds and bytes are of, and the number of threads.
        failed: why something could not be measured.
        twins: parameters and FLOPs with each other mixer.
    """

    parameters: int | None = None
    flops: int | None = None
    seconds_forward: float | None = None
    peak_memory_bytes: int | None = None
    seconds_training_step: float | None = None
    peak_memory_training_bytes: int | None = None
    machine: str | None = None
    failed: str | None = None
    twins: dict[str, list[int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Entry:
    """A network, or a variant of one.

    Attributes:
        title: what it is called.
        paper: arXiv's number, or doi, or who wrote it.
        licence: of the code that the paper's authors released.
        complaints: what users and we have found, with the numbers of issues of that code.
        figures: by "3D" and "2D", those that it has.
    """

    title: str
    paper: str
    licence: str
    complaints: str
    figures: dict[str, Figures]


@dataclasses.dataclass
class Catalogue:
    """All networks by the names that ``benchmarks`` has for them.

    Attributes:
        sizes: of an image of one channel, by "3D" and "2D".
        entries: the networks.
    """

    sizes: dict[str, list[int]]
    entries: dict[str, Entry]

    @property
    def machines(self) -> list[str]:
        """Those that seconds and bytes are of; more than one are not to be compared."""
        figures = [x for entry in self.entries.values() for x in entry.figures.values()]
        return sorted({x.machine for x in figures if x.machine is not None})


def read_catalogue(file: Path = FILE) -> Catalogue:
    """What a file holds.

    Raises:
        InputError: as `common.files.read_json`.
    """
    told = read_json(file)
    entries = {}
    for name, entry in told["networks"].items():
        figures = {dims: Figures(**x) for dims, x in entry["figures"].items()}
        entries[name] = Entry(**(entry | {"figures": figures}))
    return Catalogue(told["sizes"], entries)


def write_catalogue(catalogue: Catalogue, file: Path = FILE) -> None:
    """Write it, without what was not measured.

    Raises:
        InputError: figures are of several machines, or the file cannot be written.
    """
    if len(machines := catalogue.machines) > 1:
        raise InputError(
            f"Figures of {' and of '.join(machines)} are in one table; allowed is one machine: "
            "measure all networks on it."
        )
    entries = {name: dataclasses.asdict(entry) for name, entry in catalogue.entries.items()}
    for entry in entries.values():
        entry["figures"] = {
            dims: {name: x for name, x in figures.items() if x is not None and x != {}}
            for dims, figures in entry["figures"].items()
        }
    content = {"sizes": catalogue.sizes, "networks": entries}
    try:
        with replacing(file) as partial:
            text = json.dumps(content, indent=4, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error}).") from error


def catalogue_rows(catalogue: Catalogue) -> list[list[str]]:
    """A table's header, then a row for each network and number of axes."""
    columns = [title for title, *_ in _COLUMNS.values()]
    rows = [["network", "image", *columns, *_FACTS.values()]]
    for dims, entry, figures in _each(catalogue):
        cells = [
            _cell(getattr(figures, name), unit, form) for name, (_, unit, form) in _COLUMNS.items()
        ]
        facts = [getattr(entry, fact) for fact in _FACTS]
        if any(row[0] == entry.title for row in rows):
            facts[-1] = f"as in {DIMS[0]}" if entry.complaints else ""
        rows.append([entry.title, by_axis(catalogue.sizes[dims]), *cells, *facts])
    return rows


def twin_rows(catalogue: Catalogue) -> list[list[str]]:
    """The same of parameters, in millions, and GFLOP with each mixer, for networks with Mamba."""
    mixers = get_args(Mixer)
    rows = [["network", "image", *mixers]]
    for dims, entry, figures in _each(catalogue):
        if figures.twins:
            counts: dict[str, Sequence[int | None]] = {**figures.twins}
            counts["mamba"] = (figures.parameters, figures.flops)
            cells = [_counts(*counts.get(mixer, (None, None))) for mixer in mixers]
            rows.append([entry.title, by_axis(catalogue.sizes[dims]), *cells])
    return rows


def not_measured(catalogue: Catalogue) -> list[str]:
    """A sentence for each network of which something could not be."""
    return [
        f"{entry.title}, {dims}: {figures.failed}"
        for dims, entry, figures in _each(catalogue)
        if figures.failed is not None
    ]


def draw_catalogue(catalogue: Catalogue, page: str) -> str:
    """A page with its tables drawn anew, in Markdown, between the marks of each.

    Raises:
        InputError: the page has not the marks of a table.
    """
    machines = catalogue.machines
    said = [
        f"Seconds and GiB are of {machines[0]}." if machines else "No seconds are measured yet."
    ]
    if failed := not_measured(catalogue):
        said.append(f"Not measured: {'; '.join(failed)}.")
    tables = {
        "networks": [*_markdown(catalogue_rows(catalogue)), "", *said],
        "twins": _markdown(twin_rows(catalogue)),
    }
    for name, lines in tables.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = page.partition(begin)
        _, found_too, after = rest.partition(end)
        if not found or not found_too:
            raise InputError(f"The page has no {begin} and {end} after it; needed are both.")
        page = "\n".join([before + begin, *lines, end + after])
    return page


def _each(catalogue: Catalogue) -> list[tuple[str, Entry, Figures]]:
    return [
        (dims, entry, entry.figures[dims])
        for dims in DIMS
        for entry in catalogue.entries.values()
        if dims in entry.figures
    ]


def _cell(value: float | None, unit: float, form: str) -> str:
    return _NOTHING if value is None else format(value / unit, form)


def _counts(parameters: int | None, flops: int | None) -> str:
    if parameters is None or flops is None:
        return _NOTHING
    counted = zip((parameters, flops), list(_COLUMNS.values())[:2], strict=True)
    return ", ".join(_cell(value, unit, form) for value, (_, unit, form) in counted)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---:" if title in _NUMBERS else "---" for title in rows[0]]
    return [f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:])]
