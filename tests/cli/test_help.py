"""Help: a line for every verb and every option, and no pager."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest

from common.cli import VERBS, main
from common.cli.help import Verbs, help_of, options, overview

EVERY = {name: verb for group in VERBS.values() for name, verb in group.items()}
_WIDTH = 100


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> str:
    monkeypatch.setattr(sys, "argv", ["common", *line.split()])
    main()
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_every_verb_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys, line: str):
    lines = said(monkeypatch, capsys, line).splitlines()
    assert max(map(len, lines)) <= _WIDTH
    for title, group in VERBS.items():
        start = lines.index(title)
        found = lines[start + 1 : start + 1 + len(group)]
        assert [x[2:].partition("  ")[0] for x in found] == list(group)


def test_groups_have_their_own(monkeypatch: pytest.MonkeyPatch, capsys):
    for line in ("zoo", "zoo --help"):
        lines = said(monkeypatch, capsys, line).splitlines()
        assert any(x.startswith("  zoo verify  ") for x in lines)
        assert not any(x.startswith("  check") for x in lines)


@pytest.mark.parametrize("name", EVERY)
def test_every_option_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys, name: str):
    parameters = inspect.signature(EVERY[name]).parameters
    found = [option for group in options(EVERY[name]).values() for option in group]
    assert sorted(option.name for option in found) == sorted(parameters)
    usage, blank, *lines = said(monkeypatch, capsys, f"{name} --help").splitlines()
    assert usage.startswith(f"python -m common {name}")
    assert blank == ""
    assert max(map(len, lines)) <= _WIDTH
    for option in found:
        (line,) = (x for x in lines if x.startswith(f"  {option.typed}  "))
        assert option.text in line
    for group in options(EVERY[name]):
        assert group in lines


def verb(
    path: str,
    output: str,
    *,
    size: int = 3,
    kind: str | None = None,
    plain: bool = False,
    **rest: Any,
) -> None:
    """Do what it does.

    Note: it does it well.

    Input:
        PATH: a file.
        rest: all else, which is
            much.
    Output:
        output: a folder.
        size: how large.
        kind: which; by default any.
        plain: whether.
    """


def test_sections_of_a_docstring_are_groups():
    assert help_of("verb", verb).splitlines() == [
        "python -m common verb PATH --output OUTPUT [--option value ...]",
        "",
        "Do what it does.",
        "",
        "Note: it does it well.",
        "",
        "Input",
        "  PATH        a file (needed)",
        "  --ID VALUE  all else, which is much",
        "",
        "Output",
        "  --output    a folder (needed)",
        "  --size      how large [3]",
        "  --kind      which; by default any",
        "  --plain     whether [False]",
    ]


def test_names_in_a_row():
    def pack(*names: str, output: str) -> None:
        """Pack.

        Input:
            NAMES: what.
        Output:
            output: where.
        """

    lines = help_of("zoo pack", pack).splitlines()
    assert lines[0] == "python -m common zoo pack NAMES ... --output OUTPUT"
    assert "  NAMES ...  what" in lines
    verbs: Verbs = {"Packages": {"zoo pack": pack}}
    assert overview(verbs).splitlines()[-2:] == ["Packages", "  zoo pack  Pack"]


def test_verbs_without_options():
    def doctor() -> None:
        """Say how it is."""

    assert help_of("doctor", doctor).splitlines() == [
        "python -m common doctor",
        "",
        "Say how it is.",
    ]
