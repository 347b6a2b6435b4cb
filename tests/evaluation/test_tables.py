import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from common.evaluation.results import METRICS, Results, read_results
from common.evaluation.tables import (
    BETTER,
    Cell,
    Paper,
    Row,
    Table,
    as_latex,
    as_markdown,
    case_table,
    comparison_tables,
    cost_table,
    lesion_tables,
    paper_table,
    read_paper,
    result_tables,
)

from ..conftest import REPOSITORY
from .results_folders import SETTINGS, write_results

NOTHING = Paper({}, {}, {})
NAMES = ["a|b", "<script>alert(1)</script>", "50% & $x_1$ \\foo{} #~^", "[*] *\n`y`", "a_b"]


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Results]:
    dice = [[0.9, 0.5], [0.8, math.nan], [0.7, 0.0]]
    better = [[0.9, 0.6], [0.9, math.nan], [0.9, 0.0]]
    folders = {"A": write_results(tmp_path / "a", dice), "B": write_results(tmp_path / "b", better)}
    return read_results(folders)


def column(table: Table, name: str) -> list[Cell]:
    return [row.cells[table.columns.index(name)] for row in table.rows]


def test_metrics_have_a_direction():
    assert set(METRICS) == set(BETTER)


def test_means_the_best_and_what_has_no_value(results: dict[str, Results]):
    tables = {table.title: table for table in result_tables(results, NOTHING)}
    liver, tumour = (tables[f"{name}: mean over cases"] for name in ("liver", "tumour"))
    assert [cell.text for cell in column(liver, "Method")] == ["A", "B"]
    assert [cell.text for cell in column(liver, "Dice ↑")] == ["0.8000 ± 0.1000", "0.9000 ± 0.0000"]
    assert [cell.strong for cell in column(liver, "Dice ↑")] == [False, True]
    assert [cell.strong for cell in column(liver, "HD95, mm ↓")] == [False, True]
    assert [cell.text for cell in column(liver, "RVD")] == ["-0.1000 ± 0.1000", "0.0000 ± 0.0000"]
    assert not any(cell.strong for cell in column(liver, "RVD"))
    counts = [[cell.text for cell in row.cells[-4:]] for row in tumour.rows]
    assert counts == [["2", "1", "1", "0"]] * 2
    assert "HD95 is over another number of cases: A 1, B 1." in tumour.notes
    assert not any("HD95 is over" in note for note in liver.notes)
    rule = "Empty masks: A class that neither mask has is left out. NSD is at 2 mm."
    assert all(rule in table.notes for table in tables.values())


def test_both_means_stand_there_where_they_differ(results: dict[str, Results], tmp_path: Path):
    titles = [table.title for table in result_tables(results, NOTHING)]
    assert titles[0].startswith("Mean of the classes' means")
    assert titles[1].startswith("Mean over all cases and classes")
    full = read_results({"A": write_results(tmp_path / "full", [[0.9, 0.5], [0.8, 0.4]])})
    titles = [table.title for table in result_tables(full, NOTHING)]
    assert [title for title in titles if title.startswith("Mean")] == ["Mean of the classes' means"]
    one = {**SETTINGS, "classes": {"lung": [1]}}
    lungs = write_results(tmp_path / "one", [[0.9], [0.8]], ["lung"], settings=one)
    assert len(result_tables(read_results({"A": lungs}), NOTHING)) == 1


def test_equal_numbers_are_best_together(tmp_path: Path):
    folders = {
        name: write_results(tmp_path / name, [[0.9, score]] * 2)
        for name, score in (("a", 0.5), ("b", 0.50001), ("c", 0.4))
    }
    *_, liver, tumour = result_tables(read_results(folders), NOTHING)
    assert [cell.strong for cell in column(tumour, "Dice ↑")] == [True, True, False]
    assert not any(cell.strong for cell in column(liver, "Dice ↑")), "none of equals"


def test_pictures_have_pixels(tmp_path: Path):
    settings = {**SETTINGS, "unit": "pixels"}
    folder = write_results(tmp_path / "a", [[0.9, 0.5]] * 2, settings=settings)
    table = result_tables(read_results({"A": folder}), NOTHING)[-1]
    assert "HD95, pixels ↓" in table.columns


def test_the_papers_numbers_stand_below_ours(results: dict[str, Results]):
    given = {
        "A": {"liver dice, %": 95.77, "liver dice sd, %": 3.0, "liver hd95, mm": 3.5},
        "U-Mamba": {"liver dice": 0.9, "parameters, M": 173.53, "dice of liver at batch 1": 7},
    }
    paper = read_paper(given, ("liver", "tumour"))
    *_, liver, _ = result_tables(results, paper)
    shown = [(row.cells[0].text, row.cells[1].text, row.of_paper) for row in liver.rows]
    assert [x for x in shown if x[2]] == [
        ("A (paper)", "0.9577 ± 0.0300", True),
        ("U-Mamba (paper)", "0.9000", True),
    ]
    assert [x[0] for x in shown] == ["A", "A (paper)", "B", "U-Mamba (paper)"]
    assert not any(cell.strong for row in liver.rows if row.of_paper for cell in row.cells)
    assert any("paper's own numbers" in note for note in liver.notes)
    costs, others = cost_table(results, paper), paper_table(paper)
    assert costs is not None
    assert [cell.text for cell in costs.rows[0].cells] == ["U-Mamba (paper)", "173.530"]
    assert others is not None
    assert [cell.text for cell in others.rows[0].cells] == ["U-Mamba (paper)", "7"]


@pytest.mark.parametrize("value", ["0.9", None, True])
def test_a_paper_has_numbers(value: object):
    with pytest.raises(InputError, match=r"paper has .* as liver dice of A; allowed are numbers\."):
        read_paper({"A": {"liver dice": value}}, ("liver",))


def test_lesions_and_their_strata(tmp_path: Path):
    folders = {
        name: write_results(tmp_path / name, [[0.9, quality]] * 3, lesions=30)
        for name, quality in (("a", 0.5), ("b", 0.8))
    }
    whole, strata = lesion_tables(read_results(folders))
    assert whole.title == "Lesions of tumour"
    assert [cell.strong for cell in column(whole, "Recall ↑")] == [False, True]
    assert [cell.text for cell in column(strata, "Method")] == ["a", "b"] * 3
    assert [cell.text for cell in column(strata, "Stratum")][1:3] == ["< 20", "20 to 50"]
    assert strata.numeric[:3] == [False, False, True]
    assert [cell.strong for cell in column(strata, "Recall ↑")] == [False, True] * 3
    assert whole.notes == ["Settings: lesion_overlap: 0.1."]


def test_costs_are_in_units_that_people_use(tmp_path: Path):
    costs = {"parameters": 1_870_000, "flops": 457_620_000_000, "seconds_forward": 0.0123}
    costs |= {"peak_memory_bytes": None, "input_size": [128, 128, 64], "machine": "a CPU"}
    folder = write_results(tmp_path / "a", [[0.9, 0.5]], costs=costs)
    table = cost_table(read_results({"A": folder}), NOTHING)
    assert table is not None
    assert table.columns == ["Method", "Parameters, M ↓", "FLOPs, G ↓", "Forward, ms ↓"]
    assert [cell.text for cell in table.rows[0].cells] == ["A", "1.870", "457.62", "12.30"]
    assert table.notes == ["A: input 128 x 128 x 64; machine a CPU."]


def test_comparison():
    pair = {"a": "A", "b": "B", "difference": -0.02, "ci": [-0.03, -0.01], "statistic": 3.0}
    pair |= {"p": 0.0001, "p_holm": 0.04, "effect_size": -0.5, "n": 12}
    unknown = dict.fromkeys(("difference", "ci", "statistic", "p", "p_holm", "effect_size"))
    methods = {
        "A": {"mean": 0.8, "sd": 0.1, "ci": [0.7, 0.9]},
        "B": {"mean": 0.82, "sd": 0.1, "ci": None},
    }
    ranking = [
        {"method": "B", "rank": 1, "rank_ci": [1, 2], "first": 0.9},
        {"method": "A", "rank": 2, "rank_ci": [1, 2], "first": 0.1},
    ]
    found = {"methods": methods, "pairs": [pair, {**pair, **unknown, "n": 0}], "ranking": ranking}
    comparison = {
        "settings": {"methods": ["A", "B"], "seed": 0},
        "metrics": {"dice": {"liver": found}},
        "notes": ["dice, liver: at most 5 cases differ.", "dice, tumour: of others."],
    }
    ranks, pairs = comparison_tables(comparison)
    assert [row.cells[0].text for row in ranks.rows] == ["B", "A"]
    assert [cell.text for cell in ranks.rows[0].cells[1:4]] == ["1", "1 to 2", "90.0 %"]
    assert [cell.text for cell in pairs.rows[0].cells] == [
        *("A", "B", "-0.0200", "-0.0300 to -0.0100", "3.0", "< 0.001", "0.040", "-0.50", "12"),
    ]
    assert [cell.strong for cell in column(pairs, "p (Holm)")] == [True, False]
    assert [cell.text for cell in pairs.rows[1].cells[2:]] == [*["-"] * 6, "0"]
    assert "At most 5 cases differ." in pairs.notes
    assert not any("of others" in note for note in pairs.notes)


def test_every_case_is_in_a_table(results: dict[str, Results]):
    table = case_table(results)
    assert len(table.rows) == 6
    assert [cell.text for cell in table.rows[0].cells] == [
        *("case_000", "liver", "1000.00", "0.9000", "0.9000"),
    ]
    assert [cell.text for cell in table.rows[3].cells[2:]] == ["-"] * 3


def names_table() -> Table:
    rows = [
        Row([Cell(name), Cell("-0.5000 ± 0.1000", -0.5, i == 0)]) for i, name in enumerate(NAMES)
    ]
    rows.append(Row([Cell("x (paper)"), Cell("-", math.nan)], of_paper=True))
    return Table("A & B_1", ["Method", "|RVD| ↓"], rows, ["100 % <b>"])


def test_markdown_shows_any_name():
    text = as_markdown("Title", [names_table()])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert not re.search(r"(?<!\\)[<_`]", text)
    assert r"| a\|b | **-0.5000 ± 0.1000** |" in lines
    assert "| *x (paper)* | *-* |" in lines
    assert len(lines) == 2 + len(NAMES) + 1


def test_latex_shows_any_name():
    text = as_latex([names_table()])
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line]
    assert len(rows) == len(NAMES) + 1
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 1
        assert not row.startswith(("[", "*")), r"\\ takes these as its own"
        plain = re.sub(r"\\(text\w+|pm)|\\[{}$&#%_]|\$(-|\\pm)\$", "", row.removesuffix(r"\\"))
        assert not re.search(r"[$#%_^~\\<>|]", plain), plain
    assert rows[0] == r"a\textbar{}b & \textbf{$-$0.5000 $\pm$ 0.1000} \\"
    assert rows[-1] == r"\textit{x (paper)} & \textit{--} \\"
    assert r"\caption{A \& B\_1}" in text
    assert r"100 \% \textless{}b\textgreater{}" in text
    for word in (r"\toprule", r"\begin{tabular}{lr}", r"\end{table}"):
        assert word in text


def test_latex_has_the_letters_of_all_studies():
    """pdfLaTeX stops at any letter that it was not told of."""
    files = sorted((REPOSITORY / "studies").glob("*/*.json"))
    letters = {x for file in files for x in file.read_text(encoding="utf-8") if not x.isascii()}
    assert {"β", "λ", "→", "±"} <= letters
    text = as_latex([Table(" ".join(sorted(letters)), ["Method", "mm² ≤ 3 °"], [], [])])
    assert "U+" not in text, "a letter without a counterpart"
    assert [x for x in text if ord(x) > 0x17F] == []  # Latin letters are those of fontenc's T1
    for word in (r"$\beta$", r"$\lambda$", r"$\rightarrow$", "mm$^2$ $\\le$ 3 $^\\circ$"):
        assert word in text


def test_latex_has_the_codes_of_what_it_cannot_show():
    names = [
        "Müller",
        "Mu\u0308ller",
        "Šimůnek",
        "\N{OHM SIGN}",
        "“a” · b\N{RIGHT SINGLE QUOTATION MARK}s — c…",
        "中文",
        "Ħ",
        "a\ab",
    ]
    text = as_latex([Table("", ["Method"], [Row([Cell(name)]) for name in [*names, "½ 😀"]], [])])
    shown = [line.removesuffix(r" \\") for line in text.split(r"\midrule")[1].splitlines()[1:10]]
    assert shown == [
        "Müller",
        "Müller",
        "Šimůnek",
        r"$\Omega$",
        r"``a'' $\cdot$ b's --- c\ldots{}",
        "{[}U+4E2D{]}{[}U+6587{]}",
        "{[}U+0126{]}",
        "a{[}U+0007{]}b",
        "{[}U+00BD{]} {[}U+1F600{]}",
    ]


def test_latex_gets_no_more_tables_at_once_than_it_keeps():
    text = as_latex([names_table()] * 40)
    parts = text.split("\\clearpage")
    assert [part.count(r"\begin{table}") for part in parts] == [16, 16, 8]


ENGINES = {
    "pdflatex": ["-interaction=nonstopmode", "-halt-on-error"],
    "tectonic": ["--only-cached"],
}


def typeset(folder: Path, body: str) -> str:
    """What is wrong with a document of tables; empty where nothing is."""
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        pytest.skip("needs pdflatex or tectonic")
    preamble = as_latex([]).partition(": ")[2]
    file = folder / "main.tex"
    file.write_text(
        rf"\documentclass{{article}}{preamble}\begin{{document}}Tables.{body}\end{{document}}",
        encoding="utf-8",
    )
    words = [engine, *ENGINES[engine], file.name]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=240)
    said = (done.stdout + done.stderr).decode(errors="replace")
    return "" if done.returncode == 0 and file.with_suffix(".pdf").is_file() else said[-2000:]


def test_latex_is_typeset(results: dict[str, Results], tmp_path: Path):
    if said := typeset(tmp_path, ""):
        pytest.skip(f"LaTeX has not the packages booktabs and adjustbox here: {said[-200:]}")
    rows = [Row([Cell(name)]) for name in ("VSSM → Conv3", "β 0.7", "Müller's Ω³")]
    letters = "".join(filter(str.isalpha, map(chr, range(0x80, 0x180))))
    tables = [
        *result_tables(results, NOTHING),
        Table(
            "→ ± ≥ λ",
            ["Method"],
            rows,
            [letters, "中 “a” · b\N{RIGHT SINGLE QUOTATION MARK}s — c… ς ½ \a"],
        ),
    ]
    assert typeset(tmp_path, as_latex([*tables, *([names_table()] * 60)])) == ""
    assert typeset(tmp_path, r"\nothing"), "what cannot be typeset is seen"


def test_methods_are_of_the_same_cases_and_in_one_order(tmp_path: Path):
    first = write_results(tmp_path / "a", [[0.9, 0.5], [0.8, 0.4]], cases=["x", "y"])
    other = write_results(tmp_path / "b", [[0.1, 0.2], [0.3, 0.4]], cases=["y", "x"])
    results = read_results({"A": first, "B": other})
    assert results["B"].cases == ("x", "y")
    np.testing.assert_array_equal(results["B"].values["dice"], [[0.3, 0.4], [0.1, 0.2]])


def spoil(folder: Path, name: str, old: str, new: str) -> None:
    file = folder / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("cases.csv", "case,class", "case,klass", "lacks the columns class; it has case, klass"),
        ("cases.csv", "0.9,", "much,", "has 'much' as dice in line 2; allowed are finite numbers"),
        ("cases.csv", "0.9,", "inf,", "has 'inf' as dice in line 2; allowed are finite numbers"),
        ("cases.csv", "case_000,1,liver", "case_000,one,liver", "has the class 'one' in line 2"),
        ("cases.csv", "case_000,2,tumour", "case_000,1,liver", "of which there is another row"),
        ("cases.csv", "case_000,2,tumour", "case_000,1,spleen", "and one name per class"),
        ("cases.csv", "case_000,2", "case_009,2", "lacks case_000 class 2; case_009 class 1"),
        ("cases.csv", "0.9,", "0.9,0.9,", "has 17 values in line 2; allowed are 16"),
        ("summary.json", '"mean": {"dice"', '"maen": {"dice"', "has no object 'mean'"),
        (
            "summary.json",
            '"classes": {"liver": {"dice"',
            '"classes": {"a": {"dice"',
            "of one evalu",
        ),
        ("summary.json", "{", "", "cannot be read as JSON"),
        ("lesions.csv", "missed", "lost", "has the kind 'lost' in line"),
        ("learning_curves.csv", "epoch", "step", "has no column epoch"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, name: str, old: str, new: str, sentence: str):
    folder = write_results(tmp_path / "a", [[0.9, 0.5], [0.8, 0.4]], lesions=20, epochs=3)
    read_results({"A": folder})
    if name == "summary.json" and old.startswith('"mean'):
        text = json.loads((folder / name).read_text())
        text["maen"] = text.pop("mean")
        (folder / name).write_text(json.dumps(text))
    else:
        spoil(folder, name, old, new)
    with pytest.raises(InputError, match=sentence) as caught:
        read_results({"A": folder})
    assert str(folder / name) in str(caught.value)


def test_other_sets_are_named(tmp_path: Path):
    dice = [[0.9, 0.5], [0.8, 0.4]]
    first = write_results(tmp_path / "a", dice)
    with pytest.raises(InputError, match=r"none has no cases\.csv; allowed are folders that"):
        read_results({"A": first, "B": tmp_path / "none"})
    with pytest.raises(InputError, match="no folder of results; needed is one or more"):
        read_results({})
    other = write_results(tmp_path / "b", dice, ["liver", "vessels"])
    with pytest.raises(InputError, match="B has the classes liver, vessels, and A liver, tumour"):
        read_results({"A": first, "B": other})
    fewer = write_results(tmp_path / "c", dice[:1])
    with pytest.raises(InputError, match="B lacks cases that A has: case_001; allowed are methods"):
        read_results({"A": first, "B": fewer})
    with pytest.raises(InputError, match="B lacks cases that A has: case_001"):
        read_results({"B": fewer, "A": first})
    loose = write_results(tmp_path / "d", dice, settings={**SETTINGS, "tolerance_mm": 3.0})
    with pytest.raises(InputError, match=r"with tolerance_mm 3\.0, and A with 2\.0"):
        read_results({"A": first, "B": loose})
