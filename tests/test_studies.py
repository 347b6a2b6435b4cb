"""The studies of the five papers: that each can be run, and says what its paper prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.errors import InputError
from common.evaluation.comparison import BETTER, LESION_DICE
from common.files import read_json
from common.workflows.study.definition import read_study

from .conftest import REPOSITORY, shared

STUDIES = sorted((REPOSITORY / "studies").glob("*/*.json"))
KEYS = ["title", "data", "budget", "rows", "metrics", "classes", "evaluation", "paper", "notes"]
KEYS += ["missing"]
PAPERS = {
    "codebook_mamba_unet": "papers/2_codebook_mamba.txt",
    "elanres_msca_unet": "papers/4_elanres_msca_unet.txt",
    "lcmambanet": "papers/1_lcmambanet.txt",
    "lightm_unet": "papers/5_lightm_unet.txt",
    "mambaclinix": "papers/3_mambaclinix.txt",
}
TITLES = {  # of every table with numbers, and of the figures that are drawn of such
    "lightm_unet": ["table 1 and figure 1 (a)", "table 2 and figure 1 (b)", "table 3"],
    "mambaclinix": ["table 3", "table 4", "table 5", "figure 5 (a)"],
    "lcmambanet": [f"table {number}" for number in range(1, 8)],
    "codebook_mamba_unet": [
        *(f"table {number}" for number in range(1, 6)),
        *(f"figure {number}" for number in range(6, 12)),
    ],
    "elanres_msca_unet": [
        *("table 2", "tables 3 and 4", "table 5", "table 6", "tables 7 and 8", "table 9"),
    ],
}
COSTS = "parameters|flops|seconds_forward|seconds_volume|peak_memory_bytes"
OF_COSTS = re.compile(rf"({COSTS})( at batch \d+)?(, (M|G|MB|ms|s))?")
OF_STRATA = "( < 20 mm| 20 to 50 mm| >= 50 mm)?"
OF_SPREAD = "( sd| ci low| ci high)?(, (%|mm))?"


@pytest.fixture(params=STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def study(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read_json(request.param)


@pytest.mark.parametrize("paper", TITLES)
def test_every_table_and_figure_is_there(paper: str):
    titles = [read_json(path)["title"] for path in STUDIES if path.parent.name == paper]
    for wanted in TITLES[paper]:
        assert any(re.match(f"[^,]+, {re.escape(wanted)}:", title) for title in titles), wanted
    for title in titles:
        name = re.match("[^,]+, ([^:]+):", title)
        assert name is not None, title
        assert name[1] in TITLES[paper]


def test_all_say_the_same_things(study: dict[str, Any]):
    lesions = LESION_DICE in study["metrics"]
    assert list(study) == [key for key in KEYS if lesions or key != "evaluation"]
    if lesions:
        assert set(study["evaluation"]["lesions"]) <= set(study["classes"])
        assert len(study["data"]["seeds"]) == 1, "lesions of several seeds are not averaged"
    data = study["data"]
    assert data["dataset_dir"] == "$REQUIRED"
    assert set(data) <= {"dataset_dir", "folds", "seeds", "split", "split_seed"}
    assert set(study["budget"]) == {"max_epochs", "epoch_length"}
    assert study["rows"]
    for name, row in study["rows"].items():
        assert not set(name) & set('/\\,#:*?"<>|'), f"{name} is to be a folder"
        assert "split" not in row
    for metric in study["metrics"]:
        assert metric in BETTER or metric == LESION_DICE
    for values in study["classes"].values():
        assert values
        assert all(isinstance(value, int) and value > 0 for value in values)
    assert all(note.endswith(".") for note in study["notes"])
    assert not set(study["missing"]) & set(study["rows"])


def numbers(study: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for row, cells in study["paper"].items():
        for key, value in cells.items():
            yield row, key, value


def test_the_papers_numbers_are_those_of_its_metrics(study: dict[str, Any]):
    classes = "|".join([*map(re.escape, study["classes"]), "mean"])
    metrics = "|".join(study["metrics"]) or "none"
    pattern = re.compile(f"({classes}){OF_STRATA} ({metrics}){OF_SPREAD}")
    axes = re.compile(f"({classes}) major axis where dice < 0.6, mm")
    for row, key, value in numbers(study):
        assert row in study["rows"] or row in study["missing"]
        assert pattern.fullmatch(key) or OF_COSTS.fullmatch(key) or axes.fullmatch(key), key
        assert isinstance(value, (int, float))
        if key.endswith((" dice", " iou", " recall", " precision")):
            assert 0 < value < 1, key
        if key.endswith(", %"):
            assert 0 < value < 100, key


def test_what_the_collection_has_is_not_missing(study: dict[str, Any]):
    networks = read_json(REPOSITORY / "common/networks/networks.json")["networks"].values()
    there = {re.split("[ _]", network["title"])[0] for network in networks}  # without variants
    assert {"U-Mamba", "VM-UNet"} <= there
    assert not there & {re.split("[ _]", name)[0] for name in study["missing"]}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_papers_numbers_are_printed_there(path: Path):
    text = shared(PAPERS[path.parent.name]).read_text(encoding="utf-8")
    printed = {float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*\.?\d*", text) if x != ","}
    for row, key, value in numbers(read_json(path)):
        assert float(value) in printed, f"{row}: {key} is {value}"


def test_means_of_classes_are_those_of_their_numbers(study: dict[str, Any]):
    """Averages that papers print: an error of copying one number would show in them."""
    for row, cells in study["paper"].items():
        for key, mean in cells.items():
            rest = key.removeprefix("mean ")
            own = [
                cells[f"{name} {rest}"] for name in study["classes"] if f"{name} {rest}" in cells
            ]
            if rest != key and own:
                assert mean == pytest.approx(sum(own) / len(own), abs=0.0101), f"{row}: {key}"


def test_the_second_file_of_the_page_fits_the_table_that_it_is_for(tmp_path: Path):
    page = (REPOSITORY / "docs/studies.md").read_text(encoding="utf-8")
    (block,) = (x for x in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if "rows" not in x)
    own, table = tmp_path / "hippocampus.json", REPOSITORY / "studies/lightm_unet/table_3.json"
    own.write_text(block, encoding="utf-8")
    assert f"common study studies/lightm_unet/table_3.json,{own.name} --dataset_dir" in page
    study = read_study([table, own], tmp_path)
    assert study.title == json.loads(block)["title"]
    assert study.minutes == 30
    assert study.classes == {"anterior": [1], "posterior": [2]}
    assert list(study.rows) == list(read_json(table)["rows"])
    assert all(row.overrides["patch_size"] == [40, 56, 40] for row in study.rows.values())
    assert study.rows["VSSM → Conv3"].overrides["network_def#mixer"] == "conv"


def test_a_table_of_lesions_is_refused_where_ones_own_classes_have_none(tmp_path: Path):
    tables = [path for path in STUDIES if "evaluation" in read_json(path)]
    assert tables
    own = tmp_path / "own.json"
    for table in tables:
        own.write_text('{"classes": {"posterior": [1]}}', encoding="utf-8")
        with pytest.raises(
            InputError, match="lesions has 'tumour'; allowed are classes: posterior"
        ):
            read_study([table, own], tmp_path)
        mine = {"classes": {"posterior": [1]}, "evaluation": {"lesions": ["posterior"]}}
        own.write_text(json.dumps(mine), encoding="utf-8")
        assert read_study([table, own], tmp_path).classes == {"posterior": [1]}


def trainings(study: Mapping[str, Any]) -> Iterator[ConfigParser]:
    for row in study["rows"].values():
        own = {key: value for key, value in row.items() if key not in ("bundle", "configs")}
        settings = json.dumps(study["budget"] | own)
        yield training(row["bundle"], tuple(row.get("configs", ())), settings)


@cache
def training(bundle: str, configs: tuple[str, ...], settings: str) -> ConfigParser:
    folder = REPOSITORY / "bundles" / bundle / "configs"
    parsed = ConfigParser()
    parsed.read_config([str(folder / file) for file in ("train.json", *configs)])
    parsed.update({"bundle_root": ".", "device": "cpu"})
    for key, value in json.loads(settings).items():
        # What is not there is an argument; building tells whether there is such a one.
        parent = key.rpartition("#")[0]
        assert key in parsed or (parent and "_target_" in parsed[parent]), f"no {key} in {bundle}"
        parsed[key] = value
    return parsed


def test_rows_are_trainings_of_bundles(study: dict[str, Any]):
    found = list(trainings(study))
    for parsed in found:
        assert parsed["augmentation"] in parsed["augmentations"]
        assert parsed["label_map"] == found[0]["label_map"], "rows are compared by the same labels"


@pytest.mark.slow
def test_rows_build_their_networks_and_losses(study: dict[str, Any]):
    for parsed in trainings(study):
        # Shapes without numbers, but for those by which paths are dropped.
        with torch.device("meta"), pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
            assert isinstance(parsed.get_parsed_content("network_def"), torch.nn.Module)
        assert callable(parsed.get_parsed_content("loss"))
