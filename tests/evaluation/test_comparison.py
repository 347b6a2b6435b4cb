"""Tables of several methods, compared."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.cli import main
from common.errors import InputError
from common.evaluation import compare, comparison_lines

COLUMNS = ["case", "class", "name", "dice", "iou", "voe", "rvd", "rvd_abs", "precision", "recall"]
COLUMNS += ["f2", "asd", "hd95", "nsd", "volume_ml", "reference_ml"]
LESIONS = ["case", "class", "name", "lesion", "kind", "voxels", "volume_ml", "diameter_mm"]
LESIONS += ["number", "dice"]


def write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def evaluated(folder: Path, **metrics: Sequence[object]) -> Path:
    """A folder with a cases.csv: of two classes, whose values alternate."""
    rows = []
    for index, values in enumerate(zip(*metrics.values(), strict=True)):
        number = index % 2
        key = {"case": f"case_{index // 2}", "class": number + 1}
        key["name"] = ("liver", "tumour")[number]
        rows.append(key | dict(zip(metrics, values, strict=True)))
    write(folder / "cases.csv", COLUMNS, rows)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    random = np.random.default_rng(0)
    folders = {}
    for name, bonus in (("A", 0.0), ("B", 0.05)):
        dice = random.uniform(0.5, 0.9, 16) + bonus
        hd95 = [*random.uniform(1, 30, 15), ""]
        folders[name] = evaluated(tmp_path / name, dice=dice, hd95=hd95)
    return folders


def test_what_is_written(two: dict[str, Path], tmp_path: Path):
    found = compare(two, tmp_path / "out", ["dice", "hd95"])
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    assert list(found) == ["settings", "cases", "metrics", "notes"]
    assert found["cases"] == [f"case_{i}" for i in range(8)]
    assert found["settings"]["methods"] == ["A", "B"]
    assert list(found["metrics"]) == ["dice", "hd95"]
    for metric in ("dice", "hd95"):
        assert list(found["metrics"][metric]) == ["liver", "tumour", "mean"]
    tumour = found["metrics"]["hd95"]["tumour"]
    assert list(tumour["methods"]) == ["A", "B"]
    assert set(tumour["methods"]["A"]) == {"mean", "sd", "ci", "n", "left_out"}
    (pair,) = tumour["pairs"]
    assert set(pair) == {
        *("a", "b", "difference", "ci", "statistic", "p", "p_holm", "effect_size", "n"),
        *("method", "zeros", "left_out"),
    }
    assert (pair["a"], pair["b"], pair["n"], pair["left_out"]) == ("A", "B", 7, 1)
    assert set(tumour["ranking"][0]) == {"method", "rank", "rank_ci", "first"}
    assert tumour["better"] == "smaller"
    # of the last case, whose tumour was missed, the mean over classes is the liver's
    liver, mean = (found["metrics"]["hd95"][name]["methods"]["A"] for name in ("liver", "mean"))
    assert mean["mean"] == pytest.approx(
        (7 * tumour["methods"]["A"]["mean"] + liver["mean"] * 8 + last_liver(two["A"])) / 16
    )


def last_liver(folder: Path) -> float:
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        return float([row["hd95"] for row in csv.DictReader(file) if row["class"] == "1"][-1])


def test_a_seed_gives_the_same_bytes(two: dict[str, Path], tmp_path: Path):
    first, again, other = (
        compare(two, tmp_path / "out", seed=seed)["metrics"]["dice"]["mean"] for seed in (0, 0, 1)
    )
    assert first == again
    assert first["pairs"][0]["ci"] != other["pairs"][0]["ci"]
    assert first["pairs"][0]["p"] == other["pairs"][0]["p"]


def test_one_class_has_no_mean_of_classes(tmp_path: Path):
    for name, values in (("A", (0.5, 0.6)), ("B", (0.4, 0.7))):
        rows = [
            {"case": f"case_{i}", "class": 1, "name": "lung", "dice": value}
            for i, value in enumerate(values)
        ]
        write(tmp_path / name / "cases.csv", COLUMNS, rows)
    found = compare({"A": tmp_path / "A", "B": tmp_path / "B"}, tmp_path)
    assert list(found["metrics"]["dice"]) == ["lung"]


def test_what_cannot_be_concluded_is_said(tmp_path: Path):
    dice = [0.9, 0.5, 0.8, 0.4]
    folders = {name: evaluated(tmp_path / name, dice=dice) for name in "AB"}
    folders["C"] = evaluated(tmp_path / "C", dice=[0.8, "", 0.7, ""])
    notes = compare(folders, tmp_path / "out")["notes"]
    assert "dice, liver: A and B are equal in all of 2 cases, so p is 1." in notes
    assert "dice, tumour: A and C have no case in which both have a value." in notes
    assert (
        "dice, liver: where 2 cases differ, no p below 0.05 after Holm is possible; needed are "
        "7." in notes
    )
    notes = compare({"A": folders["A"], "C": folders["C"]}, tmp_path / "out")["notes"]
    assert "dice, liver: where 2 cases differ, no p below 0.05 is possible; needed are 6." in notes


def test_a_single_case(tmp_path: Path):
    for name, dice in (("A", 0.5), ("B", 0.6)):
        row = {"case": "case_0", "class": 1, "name": "lung", "dice": dice}
        write(tmp_path / name / "cases.csv", COLUMNS, [row])
    found = compare({"A": tmp_path / "A", "B": tmp_path / "B"}, tmp_path)
    *lines, note = comparison_lines(found)
    assert [line.split() for line in lines] == [
        ["dice,", "lung"],
        ["rank", "(95", "%)", "first", "method", "mean", "±", "sd", "95", "%", "CI", "cases"],
        ["1", "-", "-", "B", "0.6000", "±", "-", "-", "1"],
        ["2", "-", "-", "A", "0.5000", "±", "-", "-", "1"],
        ["pair", "difference", "95", "%", "CI", "p", "p", "(Holm)", "effect", "cases"],
        ["A", "-", "B", "-0.1000", "-", "1", "1", "-1.0000", "1"],
        [],
    ]
    assert note == "dice, lung: where 1 case differs, no p below 0.05 is possible; needed are 6."


def lesion(case: str, number: int, diameter: float, dice: object, kind: str = "found") -> dict:
    key = {"case": case, "class": 2, "name": "tumour", "lesion": number, "kind": kind}
    return key | {"diameter_mm": diameter, "dice": dice}


@pytest.fixture
def with_lesions(two: dict[str, Path]) -> dict[str, Path]:
    for folder, gain in zip(two.values(), (0.0, 0.1), strict=True):
        rows = [
            lesion("case_0", 1, 19.9, 0.4 + gain),
            lesion("case_0", 2, 10, "", "missed"),
            lesion("case_0", 3, 20, 0.7 + gain),
            lesion("case_0", 1, 30, "", "false"),
            lesion("case_3", 1, 50, 0.8 + gain),
            lesion("case_4", 1, 12, 0.6 - gain),
        ]
        write(folder / "lesions.csv", LESIONS, rows)
    return two


def test_lesions_in_strata(with_lesions: dict[str, Path], tmp_path: Path):
    found = compare(with_lesions, tmp_path, ["lesion_dice"])
    strata = found["metrics"]["lesion_dice"]
    assert list(strata) == ["tumour", "tumour < 20 mm", "tumour 20 to 50 mm", "tumour >= 50 mm"]
    small = strata["tumour < 20 mm"]
    # of case_0 the mean of 0.4 and of the missed one's 0
    assert small["methods"]["A"]["mean"] == pytest.approx((0.2 + 0.6) / 2)
    assert small["methods"]["B"]["mean"] == pytest.approx((0.25 + 0.5) / 2)
    assert small["pairs"][0]["n"] == 2
    assert small["pairs"][0]["difference"] == pytest.approx((-0.05 + 0.1) / 2)
    assert strata["tumour 20 to 50 mm"]["methods"]["A"]["mean"] == pytest.approx(0.7)
    assert strata["tumour >= 50 mm"]["methods"]["A"]["mean"] == pytest.approx(0.8)
    assert strata["tumour"]["methods"]["A"]["mean"] == pytest.approx((1.1 / 3 + 0.8 + 0.6) / 3)
    assert found["settings"]["strata_mm"] == [20, 50]
    found = compare(with_lesions, tmp_path, ["lesion_dice"], strata=[15])
    assert list(found["metrics"]["lesion_dice"])[1:] == ["tumour < 15 mm", "tumour >= 15 mm"]


def test_what_lcmambanets_tables_report(tmp_path: Path):
    """Mean ± SD, 95 % CI, Wilcoxon with Holm of several methods, and strata of size."""
    random = np.random.default_rng(5)
    hard = random.uniform(0, 0.1, 30)
    sizes = random.uniform(5, 90, 15)
    folders = {}
    for name, bonus in {"U-Net": 0.0, "VM-UNet": 0.01, "LCMamba-S": 0.03}.items():
        dice = np.clip(0.9 - hard + bonus + random.normal(0, 0.01, 30), 0, 1)
        folders[name] = evaluated(tmp_path / name, dice=dice, hd95=30 * (1 - dice))
        rows = [lesion(f"case_{i}", 1, sizes[i], dice[2 * i + 1]) for i in range(15)]
        write(folders[name] / "lesions.csv", LESIONS, rows)
    found = compare(folders, tmp_path, ["dice", "hd95", "lesion_dice"])
    lines = comparison_lines(found)
    start = lines.index("dice, tumour")
    assert lines[start + 1].split() == [
        *("rank", "(95", "%)", "first", "method", "mean", "±", "sd", "95", "%", "CI", "cases")
    ]
    assert lines[start + 2].split()[:3] == ["1", "1", "to"]
    assert "LCMamba-S" in lines[start + 2]
    own = found["metrics"]["dice"]["tumour"]["methods"]["LCMamba-S"]
    assert f"{own['mean']:.4f} ± {own['sd']:.4f}" in lines[start + 2]
    assert f"[{own['ci'][0]:.4f}, {own['ci'][1]:.4f}]" in lines[start + 2]
    assert lines[start + 5].split()[:2] == ["pair", "difference"]
    pairs = {f"{p['a']} - {p['b']}": p for p in found["metrics"]["dice"]["tumour"]["pairs"]}
    pair = pairs["U-Net - LCMamba-S"]
    assert pair["p_holm"] < 0.01
    (line,) = [x for x in lines[start:] if x.startswith("  U-Net - LCMamba-S")][:1]
    assert f"{pair['p_holm']:.3g}" in line
    strata = found["metrics"]["lesion_dice"]
    counts = [strata[f"tumour {x} mm"]["methods"]["U-Net"]["n"] for x in ("< 20", "20 to 50")]
    assert counts == [(sizes < 20).sum(), ((sizes >= 20) & (sizes < 50)).sum()]


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_sets_that_are_not_paired_are_refused(two: dict[str, Path], tmp_path: Path):
    edit(two["B"], "cases.csv", "case_3,1,liver", "case_9,1,liver")
    with pytest.raises(InputError) as refused:
        compare(two, tmp_path / "out")
    assert str(refused.value) == (
        "The sets are not paired: B lacks case_3 liver, which A has; allowed are methods with the "
        "same cases, classes and lesions."
    )
    edit(two["B"], "cases.csv", "case_9,1,liver", "case_3,1,liver")
    with open(two["B"] / "cases.csv", "a", encoding="utf-8") as file:
        file.write(f"case_8,1,liver{',' * (len(COLUMNS) - 3)}\n")
    with pytest.raises(InputError, match="A lacks case_8 liver, which B has"):
        compare(two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (",19.9,", ",29.9,", "the lesion case_0 tumour 1 measures 29.9 mm with B and 19.9 mm with"),
        ("case_3,2,tumour,1", "case_3,2,tumour,2", "B lacks case_3 tumour 1, which A has"),
        ("case_4", "case_99", r"lesions\.csv, line 7: case_99 is not in cases\.csv"),
        (",missed", ",lost", r"line 3: kind is 'lost'; allowed are 'found', 'missed', 'false'"),
        ("tumour,3,found", "tumour,1,found", "line 4: case_0 tumour 1 is there twice"),
        (",19.9,", ",,", "line 2: diameter_mm is empty; needed is a number"),
        (",0.5", ",", "line 2: dice is empty"),
    ],
)
def test_damaged_lesions(
    with_lesions: dict[str, Path], tmp_path: Path, old: str, new: str, expected: str
):
    edit(with_lesions["B"], "lesions.csv", old, new)
    with pytest.raises(InputError, match=expected):
        compare(with_lesions, tmp_path, ["dice", "lesion_dice"])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dice,iou", "Dice,iou", "has no column dice; it has case, class, name, Dice"),
        ("case_1,1,liver", "case_0,1,liver", r"line 4: case_0 liver is there twice"),
        ("case_0,1,liver", "case_0,1,mean", r"line 2: a class is named mean"),
        (",liver,0", ",liver,high0", r"line 2: dice is 'high0\.\d+'; allowed are numbers, or noth"),
        (",liver,0", ",liver,nan,0", r"line 2 has not 16 cells"),
        ("case_1,1,liver", '"case_1,1,liver', "cannot be read"),
    ],
)
def test_damaged_tables(two: dict[str, Path], tmp_path: Path, old: str, new: str, expected: str):
    edit(two["B"], "cases.csv", old, new)
    with pytest.raises(InputError, match=expected):
        compare(two, tmp_path / "out")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_numbers_are_finite(two: dict[str, Path], tmp_path: Path, text: str):
    evaluated(two["B"], dice=[text] + [0.5] * 15)
    with pytest.raises(InputError, match=f"line 2: dice is '{text}'; allowed are numbers"):
        compare(two, tmp_path / "out")


def test_tables_that_are_not_there(two: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match=r"no lesions\.csv in .*A; `python -m common evaluate`"):
        compare(two, tmp_path, ["lesion_dice"])
    (two["B"] / "cases.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"cases\.csv cannot be read"):
        compare(two, tmp_path)
    (two["B"] / "cases.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InputError, match=r"cases\.csv has no cases; needed is one"):
        compare(two, tmp_path)
    (two["B"] / "cases.csv").unlink()
    with pytest.raises(InputError, match=r"There is no cases\.csv in .*B"):
        compare(two, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"metrics": ["kappa"]}, "metric is 'kappa'; allowed are 'dice', 'iou', "),
        ({"metrics": []}, "metrics are none; allowed are one or more, each once"),
        ({"metrics": ["dice", "dice"]}, "metrics are dice, dice; allowed are one or more, each"),
        ({"strata": [50, 20]}, "strata are 50, 20; allowed are ascending diameters in mm above 0"),
        ({"strata": []}, "strata are none; allowed are ascending"),
        ({"strata": [0]}, "strata are 0; allowed are ascending"),
        ({"seed": -1}, "seed is -1; allowed are whole numbers from 0"),
        ({"seed": True}, "seed is True; allowed"),
    ],
)
def test_bad_arguments(two: dict[str, Path], tmp_path: Path, arguments: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        compare(two, tmp_path, **arguments)


def test_one_method_is_too_few(two: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match="methods are A; allowed are two or more"):
        compare({"A": two["A"]}, tmp_path)


def test_an_output_that_cannot_be_written(two: dict[str, Path], tmp_path: Path):
    (tmp_path / "out/comparison.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"comparison\.json cannot be written"):
        compare(two, tmp_path / "out")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["common", "compare", *map(str, words)])
    main()


def test_the_verb(
    two: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    output = ["--output", tmp_path / "out"]
    run(monkeypatch, two["A"], f"ours={two['B']}", *output, "--metrics", "dice,hd95", "--seed", 3)
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert written == compare({"A": two["A"], "ours": two["B"]}, tmp_path, ["dice", "hd95"], seed=3)
    said = capsys.readouterr().out.splitlines()
    assert said == [*comparison_lines(written), f"comparison: {tmp_path}/out/comparison.json"]
    two["A"].rename(tmp_path / "x=1")
    run(monkeypatch, tmp_path / "x=1", two["B"], *output)
    assert json.loads((tmp_path / "out/comparison.json").read_text())["settings"]["methods"] == [
        *("x=1", "B")
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["A", "sub/../A"], "A and sub/../A are both named A; allowed are different names"),
        (["A", "B", "--strata", "small"], "strata are 'small'; allowed are numbers, as in"),
        (["A", "B", "--metrics", "dice,"], "metric is ''; allowed are 'dice'"),
        ([], "methods are none; allowed are two or more"),
    ],
)
def test_the_verb_refuses(
    two: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=expected):
        run(monkeypatch, *words, "--output", "out")
    assert not (tmp_path / "out").exists()
