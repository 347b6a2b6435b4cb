"""The report as people get it: a page that is whole by itself, tables, figures."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common import evaluation
from common.cli import main
from common.errors import InputError
from common.evaluation import write_report
from common.evaluation.report import _roles
from common.evaluation.results import read_results

from .. import preloaded
from .browser import Browser, chromium
from .pages import Page
from .results_folders import SETTINGS, write_results

HOSTILE = "<script>alert('x')</script> $x_1$ & co"
CASES = ["one", "two", "<img src=x onerror=alert(1)>"]
DICE = {
    "LightM-UNet": [[0.95, 0.9], [0.9, 0.6], [0.7, 0.1]],
    HOSTILE: [[0.93, 0.8], [0.9, 0.5], [0.6, 0.0]],
}
LUNG = {**SETTINGS, "classes": {"lung": [1]}}


def write_case(folder: Path, case: str, quality: Mapping[str, float]) -> None:
    """An image, its label and a mask of each method, of which a part of the tumour is missed."""
    label = np.zeros((24, 20, 12), np.uint8)
    label[4:16, 4:16, 2:10] = 1
    label[6:12, 6:12, 4:8] = 2
    image = label * 50.0 + np.random.default_rng(0).normal(0, 5, label.shape)
    masks = {"images": image.astype(np.float32), "labels": label}
    for number, share in enumerate(quality.values()):
        mask = label.copy()
        mask[6 + int(6 * share) : 12, 6:12, 4:8] = 1
        mask[17:19, 6:9, 4:6] = 2  # far from any
        masks[f"masks_{number}"] = mask
    for name, values in masks.items():
        (folder / name).mkdir(exist_ok=True)
        ending = "_seg.nii.gz" if name.startswith("masks") else ".nii.gz"
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(values, affine), folder / name / f"{case}{ending}")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of `write_report`, everything that there can be."""
    folder = tmp_path_factory.mktemp("machine")
    methods = {
        method: write_results(
            folder / f"results_{i}",
            dice,
            cases=CASES,
            lesions=40,
            costs={"parameters": 10**6 * (i + 1), "flops": 1e9, "machine": "a CPU"},
            epochs=6,
        )
        for i, (method, dice) in enumerate(DICE.items())
    }
    for case, qualities in zip(CASES, zip(*DICE.values(), strict=True), strict=True):
        shares = [of_class[1] for of_class in qualities]
        write_case(folder, case, dict(zip(DICE, shares, strict=True)))
    pair = {"a": "LightM-UNet", "b": HOSTILE, "difference": 0.02, "ci": [0.0, 0.03]}
    pair |= {"statistic": 0.0, "p": 0.25, "p_holm": 0.25, "effect_size": 1.0, "n": 3}
    ranking = [
        {"method": method, "rank": i + 1, "rank_ci": [1, 2], "first": 0.9 - 0.8 * i}
        for i, method in enumerate(DICE)
    ]
    means = {method: {"mean": 0.8, "sd": 0.1, "ci": [0.7, 0.9]} for method in DICE}
    found = {"methods": means, "pairs": [pair], "ranking": ranking}
    return {
        "title": f"A study of {HOSTILE}",
        "methods": methods,
        "comparison": {"settings": {"seed": 0}, "metrics": {"dice": {"liver": found}}, "notes": []},
        "paper": {"LightM-UNet": {"liver dice, %": 96.31, "parameters, M": 1.87, "mean dice": 0.8}},
        "images": folder / "images",
        "labels": folder / "labels",
        "predictions": {method: folder / f"masks_{i}" for i, method in enumerate(DICE)},
        "notes": [f"The paper contradicts itself. {HOSTILE}"],
    }


@pytest.fixture(scope="module")
def report(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(output=tmp_path_factory.mktemp("output"), **given)


def test_all_is_there(report: Path):
    assert report.name == "report.html"
    names = {str(file.relative_to(report.parent)) for file in report.parent.rglob("*.*")}
    pictures = ["dice_box", "nsd_box", "hd95_box", "lesions_class_2", "dice_parameters"]
    pictures += ["volumes_class_1", "volumes_class_2", "learning_curves"]
    pictures += [
        f"{x}_case_{y}" for x in ("best", "median", "worst") for y in ("slices", "surfaces")
    ]
    assert names == {
        *("report.html", "tables.md", "tables.tex"),
        *(f"figures/{name}.{ending}" for name in pictures for ending in ("png", "pdf")),
    }
    text = report.read_text()
    for name in pictures:
        png = (report.parent / f"figures/{name}.png").read_bytes()
        assert base64.b64encode(png).decode() in text
    for pdf in report.parent.glob("figures/*.pdf"):
        content = pdf.read_bytes()
        assert b"/FontFile2" in content, "fonts are in it"
        assert b"/Type3" not in content
        assert b"CreationDate" not in content


def test_the_page_needs_nothing_else(report: Path):
    text = report.read_text()
    page = Page(text)
    assert all(x.startswith(("data:", "#")) for x in page.addresses)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    for folder in (report.parent, report.parent.parent, Path.cwd(), Path.home()):
        assert str(folder) not in text
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy.split("; ") == [
        *("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"),
        f"script-src 'sha256-{digest}'",
    ]


def test_names_are_text(report: Path):
    """A method's and a case's name are anybody's."""
    page = Page(report.read_text())
    words = "".join(page.words)
    for name in (HOSTILE, f"A study of {HOSTILE}", f"The paper contradicts itself. {HOSTILE}"):
        assert name in words
    assert CASES[2] in words
    assert f"{HOSTILE}" in page.words


def test_what_a_reader_looks_for(report: Path):
    words = "\n".join(Page(report.read_text()).words)
    for wanted in (
        *("2 methods, 3 cases, classes: liver, tumour", "LightM-UNet (paper)", "p (Holm)"),
        *("Empty masks: A class that neither mask has is left out.", "missed", "left out"),
        *("monai-mamba-bundles", "torch ", "Best case by mean Dice, one", "Lesions of tumour"),
    ):
        assert wanted in words, wanted
    tables = (report.parent / "tables.md").read_text()
    assert "## liver: mean over cases" in tables
    assert "## Costs" in tables
    assert r"\begin{tabular}" in (report.parent / "tables.tex").read_text()


def refused(given: dict[str, Any], output: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        write_report(output=output, **given | changes)
    assert not output.exists(), "nothing is written"
    return str(caught.value)


def test_bad_input_is_named(given: dict[str, Any], tmp_path: Path):
    output = tmp_path / "output"
    sentence = refused(given, output, labels=None, predictions=None)
    assert sentence == (
        "labels and predictions are missing; allowed are images, labels and predictions together, "
        "or none of them."
    )
    some = {"LightM-UNet": given["predictions"]["LightM-UNet"]}
    sentence = refused(given, output, predictions=some)
    assert sentence == f"predictions lack {HOSTILE}; needed is a folder of each method."
    sentence = refused(given, output, labels=tmp_path / "none")
    assert sentence == f"There is no folder {tmp_path}/none; needed is one with the labels."
    (tmp_path / "few").mkdir()
    few = {**given["predictions"], HOSTILE: tmp_path / "few"}
    sentence = refused(given, output, predictions=few)
    assert sentence.startswith(f"{tmp_path}/few holds no predictions; allowed are files that end")
    (tmp_path / "few/two.nii").touch()
    sentence = refused(given, output, predictions=few)
    assert sentence == (
        f"{tmp_path}/few has no file of the case one, which is to be shown; needed is one."
    )
    other = json.loads(json.dumps(given["comparison"]).replace("LightM-UNet", "nnU-Net"))
    sentence = refused(given, output, comparison=other)
    assert sentence.startswith(
        "The comparison is of nnU-Net, too; allowed are the report's methods"
    )
    sentence = refused(given, output, comparison={"cases": []})
    assert sentence.startswith("The comparison has no metrics; allowed is what")
    sentence = refused(given, output, paper={"LightM-UNet": 0.9})
    assert sentence.startswith("paper has 0.9 of LightM-UNet; allowed is a map of names")


def test_masks_on_another_grid_are_named(given: dict[str, Any], tmp_path: Path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for case in CASES:
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), folder / f"{case}.nii")
    predictions = {**given["predictions"], HOSTILE: folder}
    sentence = refused(given, tmp_path / "output", predictions=predictions)
    assert sentence == (
        f"The prediction {folder}/one.nii has the size 4 x 4 x 4, its label "
        f"{given['labels']}/one.nii.gz 24 x 20 x 12; allowed is the label's."
    )


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "output/tables.md").mkdir(parents=True)
    folder = write_results(tmp_path / "r", [[0.9]], ["lung"], settings=LUNG)
    with pytest.raises(InputError, match=r"tables\.md cannot be written"):
        write_report("x", {"A": folder}, tmp_path / "output")
    assert not (tmp_path / "output/report.html").exists()


def test_jinja2_is_named(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    sentence = refused(given, tmp_path / "output")
    assert sentence.startswith('A page needs jinja2: pip install ".[study]"')


def test_radiographs(tmp_path: Path):
    """Masks have grey levels, and a label its own values for classes."""
    label = np.zeros((40, 60), np.uint8)
    label[5:15, 5:20] = 128  # the first of two classes; of the second there is nothing
    mask = np.where(np.arange(60) < 12, label, 0).astype(np.uint8)
    for name, values in (("images", label // 2), ("labels", label), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "a.png")
    settings = {**SETTINGS, "classes": {"lung": [1], "heart": [2]}, "unit": "pixels"}
    names = ("lung", "heart")
    folder = write_results(tmp_path / "r", [[0.6, np.nan]], names, ["a"], settings)
    given: dict[str, Any] = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    given["predictions"] = {"A": tmp_path / "masks"}
    page, again = (write_report("x", {"A": folder}, tmp_path / x, **given) for x in ("a", "b"))
    files, others = (
        {file.relative_to(x.parent): file.read_bytes() for file in x.parent.rglob("*.*")}
        for x in (page, again)
    )
    assert files == others, "the same results make the same files"
    figures = {file.name for file in (page.parent / "figures").glob("*.png")}
    assert "best_case_slices.png" in figures
    assert not any("surfaces" in name for name in figures)
    pixels = np.asarray(Image.open(page.parent / "figures/best_case_slices.png").convert("RGB"))
    green = (np.abs(pixels.astype(int) - [0x29, 0x6F, 0x5A]).max(-1) < 60) & (
        pixels[..., 1] > pixels[..., 0] + 40.0
    )
    assert green.sum() > 50, "the lung has the colour of the first class"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5], {"a": "best and median and worst"}),
        ([0.5, 0.9], {"b": "best", "a": "median and worst"}),
        ([0.5, 0.9, 0.1, 0.7, 0.6], {"b": "best", "e": "median", "c": "worst"}),
        ([np.nan, 0.9, 0.1], {"b": "best", "c": "median and worst"}),
        ([np.nan], {}),
    ],
)
def test_best_median_and_worst(tmp_path: Path, scores: list[float], expected: dict[str, str]):
    cases = list("abcde")[: len(scores)]
    dice = [[score] for score in scores]
    folder = write_results(tmp_path / "r", dice, ["lung"], cases, LUNG)
    assert _roles(read_results({"A": folder})) == expected


def test_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen = {}

    def write(title: str, methods: dict[str, str], output: str, **options: Any) -> Path:
        seen.update(title=title, methods=methods, output=output, **options)
        return Path(output) / "report.html"

    monkeypatch.setattr(evaluation, "write_report", write)
    (tmp_path / "comparison.json").write_text('{"metrics": {}}')
    words = ["A=r/1", "results/B", "--output", "1234", "--title", "a,b", "--images", "i"]
    words += ["--labels", "l", "--predictions", "A=m,B=n", "--comparison", "comparison.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["common", "report", *words])
    main()
    assert seen == {
        **{"title": "a,b", "output": "1234", "methods": {"A": "r/1", "B": "results/B"}},
        **{"images": "i", "labels": "l", "predictions": {"A": "m", "B": "n"}},
        "comparison": {"metrics": {}},
    }
    assert capsys.readouterr().out == "report: 1234/report.html\n"


def test_verb_refuses(given: dict[str, Any], tmp_path: Path):
    words = ["report", given["methods"]["LightM-UNet"], "--output", tmp_path / "output"]
    done = preloaded.run("common", *words, "--images", given["images"])
    assert done.returncode == 1
    assert done.stderr.startswith("error: labels and predictions are missing; allowed are")
    done = preloaded.run("common", "report", "A=a", "A=b", "--output", tmp_path / "output")
    assert done.stderr.startswith("error: a and b are both named A; allowed are different names")
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_in_a_browser(report: Path):
    """No message in its console, no request of the network; and columns sort."""
    with Browser(chromium()) as browser:
        browser.open(report)
        first = "document.querySelector('table')"
        column = f"[...{first}.tBodies[0].rows].map((row) => row.cells[1].dataset.order)"
        click = f"{first}.querySelectorAll('thead button')[1].click()"
        before = browser.value(column)
        assert len(before) == 3
        for upwards in (True, False):
            browser.value(click)
            assert browser.value(column) == sorted(before, key=float, reverse=not upwards)
        state = browser.value(f"{first}.querySelector('[aria-sort]').getAttribute('aria-sort')")
        assert state == "descending"
        browser.value("document.querySelector('figure button').click()")
        assert browser.value("document.querySelector('dialog').open")
        assert browser.value("[...document.images].every((x) => x.complete && x.naturalWidth > 0)")
        assert browser.messages == []
        assert {x.partition(":")[0] for x in browser.requests} <= {"file", "data"}
        assert [x for x in browser.requests if x.startswith("file:")] == [report.as_uri()]


@pytest.mark.slow
def test_two_hundred_cases_and_five_methods(tmp_path: Path):
    random = np.random.default_rng(0)
    methods = {
        f"method {i}": write_results(
            tmp_path / str(i), np.clip(random.normal(0.8, 0.1, (200, 2)), 0, 1), lesions=400
        )
        for i in range(5)
    }
    page = write_report("Many", methods, tmp_path / "output")
    assert page.stat().st_size < 4e6
