"""The table of all networks: facts and figures in a file, drawn into a page."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

from benchmarks import networks
from common.cli import main
from common.errors import InputError
from common.workflows import (
    Catalogue,
    Figures,
    catalogue_rows,
    draw_catalogue,
    not_measured,
    read_catalogue,
    twin_rows,
    write_catalogue,
)
from common.workflows.catalogue import Entry

from ..conftest import REPOSITORY

MEASURED = {
    "parameters": 5_015_766,
    "flops": 85_260_000_000,
    "seconds_forward": 1.234,
    "peak_memory_bytes": 3 * 2**29,
    "seconds_training_step": 12.34,
    "peak_memory_training_bytes": 2**31,
    "machine": "a processor",
}
PAGE = "# Page\n<!-- begin: networks -->\nold\n<!-- end: networks -->\nbetween\n" + (
    "<!-- begin: twins --><!-- end: twins -->\nafter\n"
)


@pytest.fixture
def catalogue() -> Catalogue:
    twins = {"identity": [1_000_000, 2_000_000_000]}
    both = {"3D": Figures(**MEASURED, twins=twins), "2D": Figures(failed="it is for 3D images")}
    return Catalogue(
        {"3D": [96, 96, 96], "2D": [64, 32]},
        {
            "first": Entry("First", "arXiv:1", "MIT", "slow (7)", both),
            "second": Entry("Second", "doi:2", "none", "", {"2D": Figures(parameters=10)}),
        },
    )


def test_the_page_is_what_the_file_draws():
    page = (REPOSITORY / "docs/networks.md").read_text()
    assert draw_catalogue(read_catalogue(), page) == page


def test_every_network_that_is_measured_is_in_it():
    entries = read_catalogue().entries
    assert entries.keys() == networks.NETWORKS.keys()
    for name, entry in entries.items():
        assert entry.title
        assert entry.paper
        assert entry.licence
        assert entry.complaints or name in networks.MONAI
        for dims, size in (("3D", [32, 32, 32]), ("2D", [32, 32])):
            if dims not in entry.figures:
                with pytest.raises(ValueError, match="it is for"):
                    networks.build(name, size)


def test_rows(catalogue: Catalogue):
    header, *rows = catalogue_rows(catalogue)
    assert header[:4] == ["network", "image", "M parameters", "GFLOP"]
    assert [row[:8] for row in rows] == [
        ["First", "96 x 96 x 96", "5.02", "85.3", "1.23", "1.50", "12.3", "2.00"],
        ["First", "64 x 32", *6 * ["-"]],
        ["Second", "64 x 32", "0.00", *5 * ["-"]],
    ]
    assert [row[8:] for row in rows] == [
        ["arXiv:1", "MIT", "slow (7)"],
        ["arXiv:1", "MIT", "as in 3D"],
        ["doi:2", "none", ""],
    ]
    assert twin_rows(catalogue) == [
        ["network", "image", "mamba", "identity", "attention", "conv"],
        ["First", "96 x 96 x 96", "5.02, 85.3", "1.00, 2.0", "-", "-"],
    ]
    assert not_measured(catalogue) == ["First, 2D: it is for 3D images"]


def test_only_what_is_between_the_marks_is_drawn(catalogue: Catalogue):
    drawn = draw_catalogue(catalogue, PAGE)
    assert draw_catalogue(catalogue, drawn) == drawn
    assert "old" not in drawn
    for text in ("# Page\n", "\nbetween\n", "\nafter\n", "Seconds and GiB are of a processor."):
        assert text in drawn
    assert "\n| First | 96 x 96 x 96 | 5.02, 85.3 |" in drawn
    assert "Not measured: First, 2D: it is for 3D images." in drawn


@pytest.mark.parametrize("mark", ["<!-- begin: twins -->", "<!-- end: networks -->"])
def test_a_page_without_marks_is_refused(catalogue: Catalogue, mark: str):
    with pytest.raises(InputError, match=r"^The page has no <!-- begin: \w+ --> and <!-- end:"):
        draw_catalogue(catalogue, PAGE.replace(mark, ""))


def test_written_and_read(catalogue: Catalogue, tmp_path: Path):
    file = tmp_path / "networks.json"
    write_catalogue(catalogue, file)
    assert read_catalogue(file) == catalogue
    write_catalogue(read_catalogue(), tmp_path / "own.json")
    own = REPOSITORY / "common/networks/networks.json"
    assert (tmp_path / "own.json").read_bytes() == own.read_bytes()


def test_figures_of_two_machines_are_refused(catalogue: Catalogue, tmp_path: Path):
    file = tmp_path / "networks.json"
    write_catalogue(catalogue, file)
    other = copy.deepcopy(catalogue)
    other.entries["second"].figures["2D"].machine = "another"
    with pytest.raises(InputError, match=r"of a processor and of another are in one table"):
        write_catalogue(other, file)
    assert read_catalogue(file) == catalogue
    with pytest.raises(InputError, match=r"networks\.json cannot be written"):
        write_catalogue(catalogue, tmp_path / "none/networks.json")


def test_the_verb_prints_it(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["common", "networks"])
    main()
    text = capsys.readouterr().out
    for entry in read_catalogue().entries.values():
        assert entry.title in text
        assert entry.licence in text
        assert entry.complaints in text
    assert max(map(len, text.split("Known complaints")[0].splitlines())) < 220
