"""What is said of command lines before a verb works."""

from __future__ import annotations

import sys

import pytest

from common.cli import VERBS, main
from common.cli.words import check_words, find_verb
from common.errors import InputError

EVERY = {name: verb for group in VERBS.values() for name, verb in group.items()}


def first(text: str, output: str, size: int = 3, *, plain: bool = False) -> None:
    """A verb."""


def any_ids(text: str, **overrides: str) -> None:
    """A verb."""


def in_a_row(*names: str, output: str) -> None:
    """A verb."""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("--help", None),
        ("check --dataset_dir d", "check"),
        ("list", "list"),
        ("zoo", None),
        ("zoo --help", None),
        ("zoo pack a", "zoo pack"),
        ("new-bundle a", "new-bundle"),
        ("new_bundle a", "new-bundle"),
    ],
)
def test_verbs_of_one_word_or_two(line: str, expected: str | None):
    assert find_verb(list(EVERY), line.split()) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chek --dataset_dir d", "There is no verb chek; the nearest is check."),
        ("pack", "There is no verb pack; the nearest is zoo pack."),
        ("zoo instal a", "There is no verb zoo instal; the nearest is zoo install."),
        ("zoo 3", "There is no verb zoo 3; allowed are zoo ship; zoo pack; zoo verify; zoo "),
        ("--version", "There is no verb --version; allowed are segment; list; "),
    ],
)
def test_verbs_that_are_none(line: str, expected: str):
    with pytest.raises(InputError) as refused:
        find_verb(list(EVERY), line.split())
    assert str(refused.value).startswith(expected)


@pytest.mark.parametrize(
    "line",
    [
        "a b",
        "a b 5",
        "--text a --output b",
        "--text=a --output=b --size -3",
        "a --output b --plain",
        "a --output b --noplain",
        "--output b a",
        "-t a -o b",
    ],
)
def test_what_python_fire_takes_is_taken(line: str):
    check_words("first", first, line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a b --siz 3", "first has no --siz; the nearest is --size."),
        ("a b --colour 3", "first has no --colour; allowed are --text; --output; --size; --plain."),
        ("a", "first needs --output; `python -m common first --help` says what that is."),
        ("", "first needs --text and --output; "),
        ("--size 3", "first needs --text and --output; "),
        ("a b 5 c d", "first takes no further word, and there is c; d; allowed are options, which"),
        ("--text a b c d", "first takes no further word, and there is d; "),
        ("a b -x 3", "first has no --x; "),
    ],
)
def test_what_a_verb_does_not_know_or_lacks(line: str, expected: str):
    with pytest.raises(InputError) as refused:
        check_words("first", first, line.split())
    assert str(refused.value).startswith(expected)


def test_ids_and_names_in_a_row():
    check_words("any_ids", any_ids, ["a", "--network_def#filters", "8", "--resume"])
    with pytest.raises(InputError, match="any_ids takes no further word, and there is b"):
        check_words("any_ids", any_ids, ["a", "--seed", "1", "b"])
    check_words("in_a_row", in_a_row, ["a", "b", "--output", "c"])
    with pytest.raises(InputError, match="in_a_row needs --output"):
        check_words("in_a_row", in_a_row, ["a", "b"])


@pytest.mark.parametrize("line", ["chek", "check", "check --output r.json", "zoo pack a", "zoo b"])
def test_such_lines_end_with_a_sentence(line: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["common", *line.split()])
    with pytest.raises(SystemExit, match=r"^error: .*\.$"):
        main()
    assert capsys.readouterr() == ("", "")
