"""Pages of what segment did, by its manifests alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.cli import main
from common.data.writers import grey_levels
from common.errors import InputError
from common.evaluation import write_view
from common.workflows import segment, view_results
from common.workflows.segmentation.pages import _prediction
from common.workflows.segmentation.results import _publish
from common.workflows.segmentation.studies import Study

from ...evaluation.test_view import data_of, unpacked, words_of
from .conftest import save_film, save_scan, save_series

pytest.importorskip("jinja2", reason="needs the extra study")


@pytest.fixture(scope="module")
def two(ct_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the scans a and b, and out with their results; to be copied."""
    folder = tmp_path_factory.mktemp("two")
    images = [save_scan(folder / f"{name}.nii.gz", seed) for seed, name in enumerate("ab")]
    segment(images, folder / "out", ct_bundle, device="cpu")
    return folder


@pytest.fixture
def out(two: Path, tmp_path: Path) -> Path:
    shutil.copytree(two / "out", tmp_path / "out")
    return tmp_path / "out"


def test_a_study(two: Path, out: Path, tmp_path: Path):
    """As of the files, with the classes' names."""
    found = view_results(out / "a")
    assert found == ({"a": out / "a/view.html"}, {})
    page = data_of(out / "a/view.html")
    mask = np.asarray(nib.load(out / "a/a.nii.gz").dataobj)
    # Right, front and up, of an image in LPS.
    shown = unpacked(page, page["maps"]["prediction"])
    np.testing.assert_array_equal(shown, mask[::-1, ::-1])
    assert set(np.unique(mask)) == {0, 1, 2}
    same = write_view(
        *(two / "a.nii.gz", out / "a/a.nii.gz", tmp_path / "same.html"),
        classes={"liver": 1, "liver tumour": 2},
        modality="CT",
    )
    assert same.read_bytes() == (out / "a/view.html").read_bytes()
    assert "Mean, HU" in words_of(same)
    other = view_results(out / "b", tmp_path / "new/b.html")
    assert other.pages == {"b": tmp_path / "new/b.html"}
    assert {path.name for path in (out / "b").iterdir()} == {"b.nii.gz", "manifest.json"}


def test_several_studies(out: Path):
    """Below folders, too; one whose image is gone is said."""
    (out / "c").mkdir()
    shutil.move(out / "b", out / "c/b")
    (out / ".partial-left/0").mkdir(parents=True)
    shutil.copy(out / "a/manifest.json", out / ".partial-left/0")
    shutil.copytree(out / "a", out / "gone")
    manifest = json.loads((out / "gone/manifest.json").read_text())
    manifest["input"] = str(out / "none.nii.gz")
    (out / "gone/manifest.json").write_text(json.dumps(manifest))
    found = view_results(out)
    assert found.pages == {"a": out / "a/view.html", "c/b": out / "c/b/view.html"}
    assert list(found.failed) == ["gone"]
    assert found.failed["gone"].startswith(f"The image {out}/none.nii.gz cannot be read")
    pages = {path.relative_to(out).as_posix() for path in out.rglob("*.html")}
    assert pages == {"a/view.html", "c/b/view.html"}


def test_a_mask_for_each_class(ct_bundle: Path, two: Path, out: Path, tmp_path: Path):
    segment(two / "a.nii.gz", tmp_path / "apart", ct_bundle, device="cpu", ml=False)
    whole, parts = (
        data_of(view_results(folder / "a").pages["a"]) for folder in (out, tmp_path / "apart")
    )
    assert parts["maps"] == whole["maps"]
    assert parts["classes"] == whole["classes"]


def test_chosen_classes_of_a_dicom_series(ct_bundle: Path, tmp_path: Path):
    """Of two series of one folder that which was chosen."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    save_series(tmp_path / "ct", seed=1)
    uid = save_series(tmp_path / "ct", seed=2)
    chosen = {"roi_subset": "liver tumour", "overrides": {"series_uid": uid}}
    segment(tmp_path / "ct", tmp_path / "out", ct_bundle, device="cpu", **chosen)
    page = view_results(tmp_path / "out/ct").pages["ct"]
    data = data_of(page)
    assert [one["values"] for one in data["classes"]] == [[1]]
    assert set(np.unique(unpacked(data, data["maps"]["prediction"]))) == {0, 1}
    assert "liver tumour" in words_of(page)
    assert uid not in page.read_text(), "nothing of a header is on it"


def test_radiographs(cxr_bundle: Path, tmp_path: Path):
    film = save_film(tmp_path / "film.png")
    for name, ml in (("one", True), ("each", False)):
        segment(film, tmp_path / name, cxr_bundle, device="cpu", ml=ml)
    one, each = (
        data_of(view_results(tmp_path / x / "film").pages["film"]) for x in ("one", "each")
    )
    assert one["flat"]
    mask = np.asarray(Image.open(tmp_path / "one/film/film.png"))
    shown = unpacked(one, one["maps"]["prediction"])[::-1, ::-1, 0].T
    np.testing.assert_array_equal(shown, mask > 0)
    assert each["maps"] == one["maps"]


def test_greys_are_those_of_all_classes(tmp_path: Path):
    """Also where the last class is not in the mask."""
    classes = np.array([[0, 1], [1, 0]], np.uint8)
    Image.fromarray(grey_levels(4)[classes]).save(tmp_path / "mask.png")
    found = _prediction(tmp_path, {"": tmp_path / "mask.png"}, {"a": 1, "b": 2}, last=3)
    np.testing.assert_array_equal(found.values, classes.T)


def test_a_page_goes_when_the_study_is_segmented_anew(ct_bundle: Path, two: Path, out: Path):
    view_results(out / "a")
    (out / "a/notes.html").touch()
    segment(two / "a.nii.gz", out, ct_bundle, device="cpu", overwrite=False)
    assert (out / "a/view.html").is_file()
    segment(two / "a.nii.gz", out, ct_bundle, device="cpu")
    assert {x.name for x in (out / "a").iterdir()} == {"a.nii.gz", "manifest.json", "notes.html"}


def test_a_page_goes_before_the_manifest(out: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a run is killed between the two, no page of other results is left."""
    view_results(out / "a")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == "manifest.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        _publish(out, Study("a", "a.nii.gz", out / "a"), {"a.nii.gz"})
    assert {path.name for path in (out / "a").iterdir()} == {"a.nii.gz"}


def test_what_are_no_results(out: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"none has no manifest\.json; allowed are the folder of"):
        view_results(tmp_path / "none")
    with pytest.raises(InputError, match=r"output is a\.html, and .*out has 2 studies; allowed"):
        view_results(out, "a.html")
    with pytest.raises(
        InputError, match=r"output is .*\.png; allowed are files that end in \.html"
    ):
        view_results(out / "a", tmp_path / "a.png")
    sound = json.loads((out / "a/manifest.json").read_text())
    for content in (
        {},
        {"input": 3, "classes": [], "files": []},
        {"input": "a", "classes": {"a": "b"}},
        sound | {"files": {"masks": {}}},
        sound | {"files": {"masks": {"spleen": "spleen.nii.gz"}}},
    ):
        (out / "a/manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"manifest\.json is not what segment writes"):
            view_results(out / "a")
        found = view_results(out)
        assert (list(found.pages), list(found.failed)) == (["b"], ["a"])
    with pytest.raises(InputError, match=r"^The results x+ cannot be read \(File name too long\)"):
        view_results("x" * 300)


def test_command(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def said(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["common", "view", *map(str, words)])
        main()
        return capsys.readouterr().out

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            said(*words)
        return str(ended.value)

    assert said(out / "a") == f"page: {out}/a/view.html\n"
    assert said(out) == f"page: {out}/a/view.html\npage: {out}/b/view.html\n"
    (out / "b/b.nii.gz").unlink()
    assert refused(out) == f"error: 1 of 2 studies in {out} cannot be shown, as said above."
    assert f"failed: The prediction {out}/b/b.nii.gz cannot be read" in capsys.readouterr().out
    assert refused(out / "a", "--label", "b.nii").startswith(
        f"error: label is b.nii, and the result {out}/a says it itself; allowed is --output."
    )
    for words in ([], ["--image", "a", "--prediction", "b"]):
        assert refused(*words).startswith("error: view needs what segment did, RESULT, or --image")
