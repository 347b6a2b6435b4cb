from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import InputError
from common.zoo import HEADER, catalogue, catalogue_rows, describe

from ..conftest import REPOSITORY
from .conftest import NAME, edit, make_bundle

RELEASED = {
    f"{NAME}_v{version}": {"checksum": "0" * 64, "source": f"https://example.org/{version}.zip"}
    for version in ("0.1.0", "0.10.0", "0.9.0", "1.0.0-rc.1")
}
ELSEWHERE = {
    "spleen_ct_segmentation_v0.2.0": {"checksum": "1" * 64, "source": "https://a.org/b.zip"}
}
UNRELEASED = {"kidney_ct_segmentation_v0.2.0": {"source": "bundles/kidney_ct_segmentation"}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def index(here: Path) -> Path:
    (here / "index.json").write_text(json.dumps(RELEASED | ELSEWHERE | UNRELEASED))
    return here / "index.json"


def test_bundles_that_are_here_and_in_an_index(index: Path):
    found = {x.name: x for x in catalogue(index)}
    here = {file.parents[1].name for file in REPOSITORY.glob("bundles/*/configs/metadata.json")}
    assert list(found) == sorted(here | {"spleen_ct_segmentation"})
    lung, spleen = found[NAME], found["spleen_ct_segmentation"]
    assert lung.folder == REPOSITORY / "bundles" / NAME
    assert (lung.task, lung.version) == ("Lung segmentation in frontal chest X-rays", "0.1.0")
    assert lung.released == ["0.10.0", "0.9.0", "0.1.0", "1.0.0-rc.1"]
    assert (spleen.folder, spleen.size, spleen.released) == (None, None, ["0.2.0"])
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in catalogue_rows(catalogue(index))}
    assert rows[NAME]["released"] == "0.10.0, 0.9.0, 0.1.0, 1.0.0-rc.1"
    unknown = dict.fromkeys(("task", "version", "weights", "size"), "-")
    assert rows["spleen_ct_segmentation"] == {
        "bundle": "spleen_ct_segmentation",
        **unknown,
        "released": "0.2.0",
    }


def test_the_collections_own_index_is_the_default():
    assert {x.name for x in catalogue()} == {
        file.parents[1].name for file in REPOSITORY.glob("bundles/*/configs/metadata.json")
    }


def test_sizes_are_of_what_is_packed(here: Path):
    bundle = make_bundle(here)
    (bundle / "eval").mkdir()
    (bundle / "eval/mask.png").write_bytes(b"x" * 10**6)
    (found,) = (x for x in catalogue() if x.name == NAME)
    assert found.folder == bundle
    weights = (bundle / "models/model.pt").stat().st_size
    assert found.weights == weights
    others = [bundle / "LICENSE", *bundle.glob("configs/**/*.*"), *bundle.glob("docs/**/*.*")]
    assert found.size == weights + sum(file.stat().st_size for file in others)
    ((*_, shown, size, _),) = (row for row in catalogue_rows([found]))
    assert shown.endswith("kB")
    assert size.endswith("kB")


def test_an_index_that_is_named_has_to_be_one(here: Path):
    with pytest.raises(InputError, match=r"There is no index none\.json"):
        catalogue("none.json")
    (here / "index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json holds a list"):
        describe(NAME, "index.json")


def test_a_bundle_is_described_from_its_files(here: Path, index: Path):
    bundle = make_bundle(here)
    found = describe(str(bundle), index)
    assert found["bundle"] == [NAME]
    assert found["version"] == ["0.1.0 (first release)"]
    assert found["image"] == ["channels: 1; at once: 8*n x 8*n"]
    assert found["classes"] == ["0 background, 1 lung"]
    assert found["weights"][0].startswith("models/model.pt, ")
    assert "segresnet" in found["compared"][0]
    assert len(found["papers"]) == 3
    assert found["folder"] == [str(bundle)]
    edit(bundle, "metadata", lambda x: x.update(weights_license="CC-BY-SA-4.0"))
    assert describe(str(bundle))["weights"][0].endswith(", CC-BY-SA-4.0")
    (bundle / "models/model.pt").unlink()
    assert describe(NAME)["weights"][0].startswith("none: ")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"version": 3, "changelog": [], "references": "one", "task": None},
        {"network_data_format": {"inputs": {"image": {"spatial_shape": 3}}}},
        {"network_data_format": {"inputs": [], "outputs": {"pred": {"channel_def": 3}}}},
    ],
)
def test_of_anybodys_files_nothing_is_expected(here: Path, metadata: dict):
    (here / "theirs/configs").mkdir(parents=True)
    (here / "theirs/configs/metadata.json").write_text(json.dumps(metadata))
    found = describe("theirs")
    assert found["folder"] == [str(here / "theirs")]
    (listing,) = (x for x in catalogue() if x.name == "theirs")
    assert listing.problem is None
    assert catalogue_rows([listing])


def test_bundles_of_an_index_alone_are_told_by_it(index: Path):
    found = describe("spleen_ct_segmentation", index)
    assert found["released"] == ["0.2.0"]
    assert "common download spleen_ct_segmentation" in found["folder"][0]
    with pytest.raises(InputError, match="There is no bundle kidney_ct_segmentation, "):
        describe("kidney_ct_segmentation", index)
