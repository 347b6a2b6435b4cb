"""A page to look at a segmentation: what is in it, what it says, and how it looks in a browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from PIL import Image

from common import evaluation
from common.cli import main
from common.errors import InputError
from common.evaluation import evaluate, write_view
from common.evaluation import view as module
from common.evaluation.label_maps import read_segmentation
from common.evaluation.scenes import ERRORS, colour_of, load_scene

from .. import preloaded
from .browser import Browser, chromium
from .pages import Page

SIZE = (20, 24, 12)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
CLASSES: dict[str, Any] = {"liver": [1, 2], "tumour": 2}
HOSTILE = "</script><img src=x onerror=alert(1)>"


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A CT, its label, and a prediction that misses the tumour and half of the liver."""
    label = np.zeros(SIZE, np.uint8)
    label[4:12, 4:12, 2:10] = 1
    label[6:8, 6:8, 4:6] = 2
    prediction = label.copy()
    prediction[4:8, 4:12, 2:10] = 0
    prediction[14:16, 4:6, 4:6] = 1
    image = np.where(label > 0, 110, -1000) + np.random.default_rng(0).normal(0, 4, SIZE)
    return {
        name: write(tmp_path / f"in/labelsTr/{name}.nii.gz", values)
        for name, values in (
            ("image", image.astype(np.float32)),
            ("label", label),
            ("prediction", prediction),
        )
    }


def data_of(page: Path) -> dict[str, Any]:
    data, _ = Page(page.read_text()).scripts
    return dict(json.loads(data))


def unpacked(data: dict[str, Any], packed: str) -> np.ndarray:
    """(x, y, z)."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.cumsum(steps, dtype=np.uint8).reshape(data["size"][::-1]).T


def loaded(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def words_of(page: Path) -> str:
    return " ".join(" ".join(Page(page.read_text()).words).split())


def test_the_page_needs_nothing_else(files: dict[str, Path], tmp_path: Path):
    page = write_view(output=tmp_path / "new/page.html", **files, classes={HOSTILE: 1})
    text = page.read_text()
    read = Page(text)
    assert all(address.startswith("data:") for address in read.addresses)
    for word in ("http:", "https:", "@import", "url(", HOSTILE):
        assert word not in text
    for folder in (tmp_path, Path.cwd(), Path.home()):
        assert str(folder) not in text
    assert HOSTILE in read.words
    assert "image.nii.gz" in read.words
    _, script = read.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert read.policy.split("; ") == [
        *("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"),
        f"script-src 'sha256-{digest}'",
    ]
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]


def test_what_is_drawn_is_in_the_files(files: dict[str, Path], tmp_path: Path):
    page = write_view(output=tmp_path / "page.html", **files, classes=CLASSES)
    data = data_of(page)
    assert data["size"] == list(SIZE)
    assert data["spacing"] == [1, 1, 2]
    assert data["centre"] == [6, 6, 4], "where the label's tumour is largest"
    grey = np.array(data["levels"])[unpacked(data, data["image"])]
    values = loaded(files["image"])
    assert np.abs(grey - values)[values > -200].max() <= 1.6
    assert np.abs(grey - values.clip(-1024)).max() <= 8
    for name in ("prediction", "label"):
        np.testing.assert_array_equal(unpacked(data, data["maps"][name]), loaded(files[name]))
    assert [one["values"] for one in data["classes"]] == [[1, 2], [2]]
    assert [one["colour"] for one in data["classes"]] == [colour_of(1), colour_of(2)]
    assert data["classes"][0]["centre"][0] == 8, "of the prediction, which has half of it"
    assert data["classes"][1]["centre"] == [6, 6, 4], "of the label, which alone has it"
    kinds = np.array(data["kinds"]).reshape(data["values"], -1)
    assert kinds.tolist() == [[0, 3, 3], [2, 1, 3], [2, 2, 1]]
    assert data["errors"] == {str(kind): colour for kind, (_, colour) in ERRORS.items()}


def test_orientation_does_not_change_the_page(files: dict[str, Path], tmp_path: Path):
    turned = {}
    for name, file in files.items():
        values = loaded(file)[::-1, ::-1].transpose(2, 0, 1)
        affine = from_matvec(
            np.array([[0, -1, 0], [0, 0, -1], [2, 0, 0]]), np.array([19.0, 23.0, 0.0])
        )
        turned[name] = write(tmp_path / "turned" / file.name, values, affine)
    pages = [
        write_view(output=tmp_path / f"{i}.html", **given, classes=CLASSES).read_bytes()
        for i, given in enumerate((files, turned))
    ]
    assert pages[0] == pages[1]


def test_values_in_no_class_are_not_shown(files: dict[str, Path], tmp_path: Path):
    page = write_view(output=tmp_path / "page.html", **files, classes={"tumour": 2, "vessel": 7})
    data = data_of(page)
    shown = unpacked(data, data["maps"]["label"])
    np.testing.assert_array_equal(shown, loaded(files["label"]) == 2)
    assert [one["values"] for one in data["classes"]] == [[1], []]
    assert data["classes"][1]["centre"] is None
    assert "The prediction has none of the classes." in words_of(page)
    assert "The label has none" not in words_of(page)


def test_names_are_those_of_dataset_json(files: dict[str, Path], tmp_path: Path):
    labels = {"background": 0, "spleen": 1}
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    words = words_of(write_view(output=tmp_path / "page.html", **files))
    assert "spleen class 2" in words
    del files["label"]
    assert "spleen" not in words_of(write_view(output=tmp_path / "page.html", **files))


def statistics(**given: Any) -> tuple[list[str], dict[str, dict[str, float]]]:
    segmentation = read_segmentation(
        given["prediction"], given.get("label"), given.get("classes", CLASSES)
    )
    table = module._statistics(load_scene(given["image"], segmentation.maps), segmentation, "HU")
    rows = {
        row.cells[0].text: {
            column: float("nan" if cell.order is None else cell.order)
            for column, cell in zip(table.columns[1:], row.cells[1:], strict=True)
        }
        for row in table.rows
    }
    return table.columns, rows


def test_statistics_are_those_of_evaluate(files: dict[str, Path], tmp_path: Path):
    for part in ("label", "prediction"):
        write(tmp_path / f"{part}s/a.nii.gz", loaded(files[part]))
    classes = CLASSES | {"vessel": 7}
    evaluate(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out", classes)
    with (tmp_path / "out/cases.csv").open(newline="") as file:
        expected = {row["name"]: row for row in csv.DictReader(file)}
    columns, rows = statistics(**files, classes=classes)
    titles = {
        **{"volume_ml": "Volume, mL", "reference_ml": "Volume in the label, mL"},
        **{"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall"},
        **{"asd": "ASD, mm", "hd95": "HD95, mm", "nsd": "NSD"},
    }
    assert columns == ["Class", *titles.values(), "Mean, HU", "SD, HU"]
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        for metric, title in titles.items():
            theirs = float(expected[name][metric] or "nan")
            assert row[title] == pytest.approx(theirs, nan_ok=True), (name, metric)
    inside = loaded(files["image"])[loaded(files["prediction"]) == 1].astype(float)
    assert rows["liver"]["Mean, HU"] == pytest.approx(inside.mean())
    assert rows["liver"]["SD, HU"] == pytest.approx(inside.std())
    assert math.isnan(rows["tumour"]["Mean, HU"])


def test_without_a_label(files: dict[str, Path], tmp_path: Path):
    del files["label"]
    columns, rows = statistics(**files)
    assert columns == ["Class", "Volume, mL", "Mean, HU", "SD, HU"]
    voxels = np.count_nonzero(loaded(files["prediction"]))
    assert rows["liver"]["Volume, mL"] == pytest.approx(voxels * 2 / 1000)
    assert rows["tumour"]["Volume, mL"] == 0
    page = write_view(output=tmp_path / "page.html", **files)
    data = data_of(page)
    assert list(data["maps"]) == ["prediction"]
    assert data["kinds"] == []
    for word in ("dashed", "missed", "Dice"):
        assert word not in words_of(page)


def test_a_prediction_of_nothing_is_said(files: dict[str, Path], tmp_path: Path):
    nothing = write(tmp_path / "nothing.nii.gz", np.zeros(SIZE, np.uint8))
    page = write_view(files["image"], nothing, tmp_path / "page.html")
    assert "The prediction has none of the classes." in words_of(page)
    assert data_of(page)["classes"] == []
    assert data_of(page)["centre"] == [10, 12, 6]


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((512, 512, 60), (0.8, 0.8, 5.0), (1, 1, 1)),
        ((512, 512, 100), (0.8, 0.8, 5.0), (2, 2, 1)),
        ((512, 512, 300), (0.8, 0.8, 1.0), (2, 2, 2)),
        ((512, 512, 300), (np.float32(0.7).item(), 0.7, 1.5), (3, 3, 1)),
        ((9000, 9000, 1), (1.0, 1.0, 1.0), (3, 3, 1)),
    ],
)
def test_large_images_are_reduced(size: Any, spacing: Any, expected: Any):
    """Along the axes of the shorter voxels, so that points stay near to cubes."""
    assert module._blocks(size, spacing) == expected


def test_a_point_shows_the_mean_and_the_class_of_most():
    random = np.random.default_rng(0)
    blocks = (2, 3, 2)
    image = random.normal(size=(9, 8, 7)).astype(np.float32)
    classes = random.integers(0, 4, (9, 8, 7), np.int32)
    more = [(0, 1), (0, 1), (0, 1)]
    means, maps = (np.pad(image, more, mode="edge"), np.pad(classes, more))
    expected_means, expected = np.empty((5, 3, 4)), np.empty((5, 3, 4), int)
    for place in np.ndindex(5, 3, 4):
        block = tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, blocks, strict=True))
        expected_means[place] = means[block].mean()
        counts = np.bincount(maps[block].ravel(), minlength=4)[1:]
        counts = counts[[0, 2]]  # 2 is in no class
        expected[place] = 1 + counts.argmax() if counts.sum() * 2 >= 12 else 0
    assert {0, 1, 2} == set(expected.ravel().tolist())
    reduced = module._reduced_image(image, blocks)
    np.testing.assert_allclose(reduced, expected_means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module._reduced_map(classes, [1, 3], blocks), expected)
    plain = module._reduced_map(classes, [1, 3], (1, 1, 1))
    np.testing.assert_array_equal(plain, np.choose(classes, [0, 1, 0, 2]))


def test_a_reduced_page_says_so(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = write_view(output=tmp_path / "whole.html", **files, classes=CLASSES)
    monkeypatch.setattr(module, "_MOST_POINTS", 800)
    page = write_view(output=tmp_path / "page.html", **files, classes=CLASSES)
    data = data_of(page)
    assert data["size"] == [7, 8, 12]
    assert data["spacing"] == [3, 3, 2]
    assert data["centre"] == [2, 2, 4]
    assert "A point shows 3 x 3 x 1 voxels: " in words_of(page)
    assert "A point shows" not in words_of(whole)
    tables = [words_of(x).partition("Statistics")[2] for x in (whole, page)]
    assert tables[0] == tables[1], "numbers are of all voxels"
    assert "HD95" in tables[0]


def test_windows(files: dict[str, Path], tmp_path: Path):
    """A CT's in HU, of all others percentiles."""
    of_ct = data_of(write_view(output=tmp_path / "a.html", **files))["windows"]
    assert of_ct[0] == [-150, 250]
    assert [-1350, 150] in of_ct
    values = loaded(files["image"])
    low, high = np.percentile(values, (1, 99))
    assert of_ct[6] == pytest.approx([low, high])
    page = write_view(output=tmp_path / "b.html", **files, modality="MR")
    data = data_of(page)
    assert data["windows"][0] == pytest.approx([low, high])
    assert data["windows"][-1] == pytest.approx([values.min(), values.max()])
    assert "HU" not in words_of(page)
    assert data["levels"] == sorted(data["levels"])
    assert data["levels"][0] == pytest.approx(values.min(), abs=1e-3)
    assert data["levels"][255] == pytest.approx(values.max(), abs=1e-3)
    positive = files | {"image": write(tmp_path / "mr.nii.gz", values + 2000)}
    assert data_of(write_view(output=tmp_path / "c.html", **positive))["windows"][0][0] > 0
    forced = data_of(write_view(output=tmp_path / "d.html", **positive, modality="ct"))
    assert forced["windows"][0] == [-150, 250]


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_an_image_with_values_that_are_none(files: dict[str, Path], tmp_path: Path, unknown: float):
    values = loaded(files["image"]).copy()
    values[0], values[9, 5, 5] = unknown, unknown
    files |= {"image": write(tmp_path / "image.nii.gz", values)}
    page = write_view(output=tmp_path / "page.html", **files)
    data = data_of(page)
    grey = np.array(data["levels"])[unpacked(data, data["image"])]
    assert grey[0].max() < -900, "the lowest value"
    assert not {"nan", "inf"} & set(words_of(page).split())


def test_radiographs(tmp_path: Path):
    """One upright picture, the patient's right at its left, counted in pixels."""
    rows = np.zeros((40, 60), np.uint8)
    rows[5:15, 5:20] = 255
    noise = np.random.default_rng(0).integers(0, 200, rows.shape, np.uint8)
    for name, values in (("image", noise), ("label", rows), ("prediction", rows // 255)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    given = {name: tmp_path / f"{name}.png" for name in ("image", "label", "prediction")}
    page = write_view(output=tmp_path / "page.html", **given, classes={"lung": 1})
    data = data_of(page)
    assert data["size"] == [60, 40, 1]
    assert data["flat"]
    upright = unpacked(data, data["maps"]["label"])[::-1, ::-1, 0].T
    np.testing.assert_array_equal(upright, rows > 0)
    words = words_of(page)
    assert "frontal" in words
    assert "axial" not in words
    assert "60 x 40 pixels; " in words
    assert "Pixels in the label" in words
    assert "ASD, pixels" in words


def refused(output: Path, **given: Any) -> str:
    with pytest.raises(InputError) as caught:
        write_view(output=output, **given)
    assert not output.is_file(), "nothing is written"
    return str(caught.value)


def test_bad_input_is_named(files: dict[str, Path], tmp_path: Path, monkeypatch):
    page = tmp_path / "page.html"
    assert refused(tmp_path / "page.png", **files) == (
        f"output is {tmp_path}/page.png; allowed are files that end in .html."
    )
    other = write(tmp_path / "other.nii.gz", np.zeros((5, 5, 5), np.uint8))
    assert refused(page, **files | {"label": other}) == (
        f"The prediction {files['prediction']} has the size 20 x 24 x 12, its label {other} 5 x 5 "
        "x 5; allowed is the label's."
    )
    assert refused(page, **files | {"image": other}) == (
        f"The prediction {files['prediction']} has the size 20 x 24 x 12, its image {other} 5 x 5 "
        "x 5; allowed is the image's."
    )
    sentence = refused(page, **files | {"image": tmp_path / "none.nii.gz"})
    assert sentence.startswith(f"The image {tmp_path}/none.nii.gz cannot be read (")
    assert refused(page, **files, classes=[1]).startswith("classes is [1]; allowed is {name: ")
    many = np.arange(math.prod(SIZE), dtype=np.uint16).reshape(SIZE) % 300
    prediction = write(tmp_path / "many.nii.gz", many)
    assert refused(page, image=files["image"], prediction=prediction) == (
        "The prediction has 299 values; a page shows up to 255."
    )
    folder = tmp_path / "folder.html"
    folder.mkdir()
    assert refused(folder, **files).startswith(f"The page {folder} cannot be written (it is a ")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert refused(page, **files).startswith('A page needs jinja2: pip install ".[study]"')


def test_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[Any] = []

    def written(*arguments: Any) -> Path:
        seen.extend(arguments)
        return Path(arguments[2])

    monkeypatch.setattr(evaluation, "write_view", written)
    words = ["--image", "1e3", "--prediction", "b", "--label", "c", "--output", "a,b.html"]
    words += ["--classes", "{'liver': [1,2]}", "--modality", "CT"]
    monkeypatch.setattr("sys.argv", ["common", "view", *words])
    main()
    assert seen == ["1e3", "b", "a,b.html", "c", {"liver": [1, 2]}, "CT"]
    assert capsys.readouterr().out == "page: a,b.html\n"


def test_verb_writes_and_refuses(files: dict[str, Path], tmp_path: Path):
    words = ["view", *(f"--{name}={file}" for name, file in files.items())]
    done = preloaded.run("common", *words, "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"page: {tmp_path}/page.html\n"
    assert data_of(tmp_path / "page.html")["size"] == list(SIZE)
    done = preloaded.run("common", *words, "--output", tmp_path / "page")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: output is {tmp_path}/page; allowed are files that end in .html."]


def test_spacing_follows_the_axes(tmp_path: Path):
    """Of an image whose first axis points up, the second to the right."""
    affine = np.array([[0, 3.0, 0, 0], [0, 0, 5.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    scene = load_scene(write(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32), affine), {})
    assert scene.values.shape == (5, 6, 4)
    assert scene.spacing == (3, 5, 2)


# The axial slice's pixels, of a copy: a browser warns of a canvas that is read again and again.
PIXELS = """(() => {
  const canvas = document.querySelector(".plane canvas");
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height).data;
})()"""
COUNT = """((data, one, other, another) => {
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    count += data[i + one] > data[i + other] + 50 && data[i + one] > data[i + another] + 15;
  }
  return count;
})"""
RED, GREEN = f"{COUNT}({PIXELS}, 0, 2, 1)", f"{COUNT}({PIXELS}, 1, 0, 2)"
GREY = f"((data) => data.reduce((sum, x) => sum + x, 0) / data.length)({PIXELS})"


@pytest.mark.slow
def test_in_a_browser(files: dict[str, Path], tmp_path: Path):
    """No message in its console, no request of the network; and everything switches."""
    page = write_view(output=tmp_path / "page.html", **files, classes=CLASSES)
    with Browser(chromium()) as browser:

        def click(name: str, value: object) -> None:
            browser.value(
                f"""document.querySelector('input[name="{name}"][value="{value}"]').click()"""
            )

        browser.open(page)
        browser.value("shown")
        assert browser.value("state.hidden"), browser.value("state.textContent")
        assert browser.value("document.querySelectorAll('.plane').length") == 3
        missed, contours = browser.value(RED), browser.value(GREEN)
        assert missed > 1000
        assert contours > 300

        click("error", 2)
        assert browser.value(RED) < missed / 4
        click("contour", 0)
        assert browser.value(GREEN) < contours / 10
        click("fill", 0)
        assert browser.value(GREEN) > 3 * contours
        click("map", "prediction")
        click("map", "label")
        assert browser.value(GREEN) == 0

        before = browser.value(GREY)
        browser.value(
            "(() => { const chosen = document.getElementById('window'); chosen.selectedIndex = 3;"
            "chosen.dispatchEvent(new Event('change')); })()"
        )
        assert browser.value("[low.valueAsNumber, high.valueAsNumber]") == [-1350, 150]
        assert browser.value(GREY) > before + 5

        shown_slice = "document.querySelector('.plane output').textContent"
        assert browser.value(shown_slice) == "5 of 12"
        browser.value(
            "(() => { const slider = document.querySelector('.plane input'); slider.value = 0;"
            "slider.dispatchEvent(new Event('input')); })()"
        )
        assert browser.value(shown_slice) == "1 of 12"
        browser.value("document.querySelector('button[data-class=\"1\"]').click()")
        assert browser.value("[...place]") == [6, 6, 4]

        assert browser.messages == []
        assert {x.partition(":")[0] for x in browser.requests} <= {"file", "data"}
        assert [x for x in browser.requests if x.startswith("file:")] == [page.as_uri()]
