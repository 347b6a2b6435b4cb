"""What a study file may say."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from common.workflows.study.definition import read_study

from .conftest import BUNDLES, LIVER, LUNG, Write


def rows(**own: Any) -> dict[str, Any]:
    return {"A": {"bundle": str(BUNDLES / LUNG), **own}}


def test_what_counts_where_several_say_it(write: Write):
    file = write(
        budget={"max_epochs": 7, "epoch_length": 5},
        overrides={"batch_size": 3, "learning_rate": 0.5},
        inference={"test_time_flips": True},
        rows=rows(learning_rate=0.1, inference={"keep_largest_component": True})
        | {"B": {"bundle": str(BUNDLES / LUNG), "configs": ["networks/segresnet.json"]}},
    )
    study = read_study(file, overrides={"budget#max_epochs": 3, "data#seeds": (1, 2)})
    a, b = study.rows.values()
    assert study.seeds == (1, 2)
    assert study.folds == (None,)
    assert a.overrides == {
        "batch_size": 3,
        "learning_rate": 0.1,
        "max_epochs": 3,
        "epoch_length": 5,
    }
    assert a.inference == {"test_time_flips": True, "keep_largest_component": True}
    assert (a.max_epochs, b.max_epochs) == (3, 3)
    assert b.inference == {"test_time_flips": True}
    assert [file.name for file in b.configs] == ["train.json", "segresnet.json"]
    assert study.classes == {"lung": [1]}  # as dataset.json calls it
    assert study.content["budget"] == {"max_epochs": 3, "epoch_length": 5}


def test_a_second_file_is_of_ones_own_data(write: Write, tmp_path: Path):
    """Each value in the place of what the first says, by ids as on the command line."""
    own = tmp_path / "own/mine.json"
    own.parent.mkdir()
    (own.parent / "cases.json").write_text("[]")
    content = {
        "title": "Mine",
        "data#cases": "cases.json",
        "budget": {"minutes": 5},
        "overrides#network_def#init_filters": 8,
        "rows#A-1#network_def#residual": False,
        "rows#A-1#inference#test_time_flips": True,
        "classes": {"left": [1]},
        "paper#A-1#left dice, %": 90,
    }
    own.write_text(json.dumps(content))
    bundle = {"bundle": str(BUNDLES / LUNG)}
    file = write(
        overrides={"batch_size": 3}, rows={"A-1": bundle | {"learning_rate": 0.1}, "B": bundle}
    )
    given = {"budget#minutes": 2, "rows#A_1#batch_size": 4, "plan#gpu_memory": 4}
    study = read_study([file, own], overrides=given)  # A_1: so the command line has it
    assert study.title == "Mine"
    assert study.minutes == 2
    assert study.plan == {"gpu_memory": 4}
    assert study.classes == {"left": [1]}
    assert study.parts["cases_file"] == own.parent / "cases.json"
    a, b = study.rows.values()
    assert b.overrides == {"batch_size": 3, "network_def#init_filters": 8}
    of_a = {"batch_size": 4, "learning_rate": 0.1, "network_def#residual": False}
    assert a.overrides == b.overrides | of_a
    assert (a.inference, b.inference) == ({"test_time_flips": True}, {})
    assert study.content["paper"] == {"A-1": {"left dice, %": 90}}
    assert list(study.content["rows"]) == ["A-1", "B"]


def test_a_file_is_looked_for_beside_the_one_that_names_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each of these is beside the first study, beside the second and in the current folder."""
    base, own, here = tmp_path, tmp_path / "own", tmp_path / "here"
    for folder in (base, own, here):
        (folder / LUNG).mkdir(parents=True)
        (folder / LUNG / "configs").symlink_to(BUNDLES / LUNG / "configs")
        for name in ("cases.json", "parts.json", "more.json"):
            (folder / name).write_text("{}")
    (here / "here.json").write_text("[]")
    monkeypatch.chdir(here)

    def found(given: Mapping[str, Any], **first: Any) -> list[Path]:
        mine = own / "mine.json"
        mine.write_text(json.dumps(given))
        study = read_study([write(**first), mine], "data")
        row = study.rows["A"]
        return [study.parts["cases_file"], study.parts["split_file"], row.bundle, row.configs[-1]]

    names = ["cases.json", "parts.json", LUNG, "more.json"]
    first = {
        "data": {"cases": "cases.json", "split_file": "parts.json"},
        "rows": {"A": {"bundle": LUNG, "configs": ["more.json"]}},
    }
    of_base, of_own = ([folder / name for name in names] for folder in (base, own))
    assert found({}, **first) == of_base
    assert found(first, **first) == of_own
    ids = {
        "data#cases": "cases.json",
        "data#split_file": "parts.json",
        "rows#A#bundle": LUNG,
        "rows#A#configs": ["more.json"],
    }
    assert found(ids, **first) == of_own
    assert found({"rows#A": first["rows"]["A"]}, **first) == of_base[:2] + of_own[2:]
    one = {"data#cases": "here.json", "rows#A#configs": ["more.json"]}
    assert found(one, **first) == [here / "here.json", *of_base[1:3], own / "more.json"]
    study = read_study(write(**first), "data", {"data#cases": "cases.json", "rows#A#bundle": LUNG})
    assert study.parts["cases_file"] == here / "cases.json"
    assert study.rows["A"].bundle == here / LUNG


@pytest.mark.parametrize("turn", [1, -1])
def test_an_id_is_a_part_of_the_whole_in_any_order(write: Write, turn: int):
    def turned(said: dict[str, Any]) -> dict[str, Any]:
        return dict(list(said.items())[::turn])

    own = {
        "overrides": turned({"network_def": {"init_filters": 4}, "network_def#residual": False}),
        "overrides#batch_size": 3,
        "rows#B": {"bundle": str(BUNDLES / LUNG)},
        "rows#B#learning_rate": 0.1,
    }
    file = write()
    content = turned(json.loads(file.read_text()) | own)
    file.write_text(json.dumps(content))
    study = read_study(file)
    of_b = [("learning_rate", 0.1), ("max_epochs", 2), ("batch_size", 3)]
    said = list(study.rows["B"].overrides.items())  # it is the order of a training's arguments
    assert sorted(said) == sorted([*of_b, *own["overrides"].items()])
    assert said.index(("network_def", {"init_filters": 4})) < said.index(
        ("network_def#residual", False)
    )
    called = turned({"overrides": {"batch_size": 5}, "overrides#learning_rate": 0.5})
    a = read_study(file, overrides=called).rows["LightM-UNet"]
    assert a.overrides == {"batch_size": 5, "learning_rate": 0.5, "max_epochs": 2}


def test_a_new_whole_has_none_of_the_parts_of_the_old_one(write: Write, tmp_path: Path):
    whole = {"network_def": {"_target_": "torch.nn.Identity"}}
    file = write(
        overrides={"network_def#residual": False, "network_def#mixer": "conv"},
        inference={"network_def#residual": False},
        rows=rows() | {"B": {"bundle": str(BUNDLES / LUNG)} | whole},
    )
    own = tmp_path / "own.json"
    own.write_text(json.dumps({f"overrides#{name}": value for name, value in whole.items()}))
    a, b = read_study(file).rows.values()
    assert set(a.overrides) == {"network_def#residual", "network_def#mixer", "max_epochs"}
    assert b.overrides == whole | {"max_epochs": 2}, "a row counts more than overrides"
    assert read_study([file, own]).rows["A"].overrides == whole | {"max_epochs": 2}


def test_only_the_command_line_has_other_names_of_rows(write: Write, tmp_path: Path):
    bundle = {"bundle": str(BUNDLES / LUNG)}
    file, own = write(rows={"A-1": bundle}), tmp_path / "own.json"
    given = {"rows#A_1#batch_size": 3}
    assert read_study(file, overrides=given).rows["A-1"].overrides["batch_size"] == 3
    own.write_text(json.dumps(given))
    with pytest.raises(InputError, match="has no row A_1; the nearest is A-1"):
        read_study([file, own])
    both = write(rows={"A-1": bundle, "A_1": bundle})
    with pytest.raises(InputError, match="may be of the rows A-1; A_1, which the command line"):
        read_study(both, overrides=given)
    a, b = read_study([both, own]).rows.values()
    assert "batch_size" not in a.overrides
    assert b.overrides["batch_size"] == 3


def test_what_is_given_stays_as_it_is(write: Write):
    given = {"overrides": {"batch_size": 3}, "overrides#learning_rate": 0.1}
    kept = copy.deepcopy(given)
    assert len(read_study(write(), overrides=given).rows["LightM-UNet"].overrides) == 3
    assert given == kept


def test_bundles_are_found_by_name_beside_the_studies(tmp_path: Path, radiographs: Path):
    (tmp_path / "bundles").symlink_to(BUNDLES)
    file = tmp_path / "studies/paper/table_1.json"
    file.parent.mkdir(parents=True)
    study = {"title": "A", "data": {"dataset_dir": "d"}, "rows": {"A": {"bundle": LIVER}}}
    file.write_text(json.dumps(study))
    assert read_study(file).rows["A"].bundle == BUNDLES / LIVER


def test_arguments_that_have_defaults_may_be_given(write: Write):
    given = {"network_def#mixer": "conv", "augmentations#mine": {"_target_": "Compose"}}
    given |= {"train#preprocessing#transforms#0#_disabled_": True}
    assert read_study(write(rows=rows(**given))).rows["A"].overrides.items() >= given.items()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"metric": []}, r"study.json has 'metric'; the nearest is metrics"),
        ({"title": 3}, "title is 3; allowed is a text"),
        ({"title": ""}, "has no title; needed are title, data and rows"),
        ({"data": {}}, "has no data; needed are"),
        ({"data": {"dataset_dir": "$REQUIRED"}}, r"dataset_dir is \$REQUIRED; needed is a folder"),
        ({"data": {"seeds": [0]}}, r"dataset_dir is \$REQUIRED; needed is a folder, by --data"),
        ({"data": {"dataset_dir": "d", "fold": 1}}, "has data#fold; the nearest is folds"),
        ({"data": {"dataset_dir": "d", "seeds": [0, 0]}}, r"data#seeds is \[0, 0\]; allowed are"),
        ({"data": {"dataset_dir": "d", "seeds": []}}, r"data#seeds is \[\]; allowed are"),
        ({"data": {"dataset_dir": "d", "folds": 5}}, "data#folds is 5; allowed are"),
        ({"data": {"dataset_dir": "d", "split_file": "no.json"}}, "names no.json, which is in"),
        ({"budget": {"minutes": 0}}, "budget#minutes is 0; allowed are numbers above 0"),
        (
            {"budget": {"minutes": 5, "max_epochs": 3}},
            r"has minutes \(5\), and the row LightM-UNet max_epochs \(3\); allowed is one of them",
        ),
        ({"budget": {"max_epoch": 3}}, "sets max_epoch; .*no max_epoch; the nearest is max_epochs"),
        ({"overrides": {"seed": 1}}, "sets seed, which each run sets itself"),
        ({"metrics": ["dce"]}, "metric is 'dce'; allowed are 'dice'"),
        ({"evaluation": {"lesion": []}}, "sets evaluation#lesion; the nearest is lesions"),
        ({"evaluation": {"output": "x"}}, "sets evaluation#output; allowed are"),
        ({"metrics": ["lesion_dice"]}, "compares lesion_dice; needed are evaluation#lesions"),
        ({"rows": {"A": {}}}, "the row A has no bundle"),
        ({"rows": {"a/b": {"bundle": LUNG}}}, "A row is called 'a/b', which is to be a folder"),
        ({"rows": {"-a": {"bundle": LUNG}}}, "A row is called '-a'"),
        ({"rows": rows(configs=["networks/u.json"])}, "The row A names networks/u.json, which is"),
        ({"rows": rows(configs="x")}, "has configs 'x'; allowed are names"),
        ({"rows": rows(inference=1)}, "has inference 1; allowed is an object"),
        ({"rows": rows(inference={"flips": 1})}, "inference of the row A sets flips; .* no flips"),
        ({"rows": rows(batchsize=2)}, "row A sets batchsize; .* the nearest is batch_size"),
        (
            {"rows": rows(**{"network_def#init_filter": 8})},
            "has no init_filter of network_def; the nearest is init_filters",
        ),
        (
            {"rows": rows(**{"network_de#init_filters": 8})},
            "has no network_de; the nearest is network_def",
        ),
        ({"rows": rows(**{"batch_size#x": 8})}, "has no x of batch_size; allowed are none"),
        ({"rows": rows(**{"split#0": 8})}, "sets split#0, which each run sets itself"),
        (
            {"rows": rows() | {"B": {"bundle": str(BUNDLES / LUNG), "label_map": {"0": 0}}}},
            r"The row A has label_map None, and B {'0': 0}; allowed is one for all",
        ),
    ],
)
def test_what_cannot_be_a_study_is_named(write: Write, content: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        read_study(write(**content))


@pytest.mark.parametrize("lesions", ["tumour", ["left", "tumour"]])
def test_lesions_are_of_the_studys_classes(write: Write, tmp_path: Path, lesions: Any):
    table = {"classes": {"left": [2], "tumour": [1]}, "evaluation": {"lesions": lesions}}
    table["metrics"] = ["lesion_dice"]
    assert read_study(write(**table)).classes == table["classes"]
    own = tmp_path / "own.json"
    own.write_text('{"classes": {"left": [1], "right": [2]}}')
    expected = "evaluation#lesions has 'tumour'; allowed are classes: left, right"
    with pytest.raises(InputError, match=expected):
        read_study([write(**table), own])
    with pytest.raises(InputError, match="; allowed are classes: lung"):  # of dataset.json
        read_study(write(**table | {"classes": {}}))
    (tmp_path / "cases.json").write_text("[]")
    unnamed = {"classes": {}, "data#cases": "cases.json"}
    with pytest.raises(InputError, match=", and neither the study nor a dataset"):
        read_study(write(**table | unnamed))


def test_the_nearest_bundle_is_named(tmp_path: Path, write: Write):
    (tmp_path / "bundles").symlink_to(BUNDLES)
    with pytest.raises(InputError, match=f"has the bundle u-net; allowed are .*{LUNG}"):
        read_study(write(rows={"A": {"bundle": "u-net"}}))
    close = LUNG.replace("lightm", "light_m")
    with pytest.raises(InputError, match=f"has the bundle {close}; the nearest is {LUNG}"):
        read_study(write(rows={"A": {"bundle": close}}))


def test_ids_of_the_file_are_known(write: Write):
    with pytest.raises(InputError, match="has no budge, of which budge#max_epochs is given"):
        read_study(write(), overrides={"budge#max_epochs": 3})
    with pytest.raises(InputError, match="has no row LightM; the nearest is LightM-UNet"):
        read_study(write(), overrides={"rows#LightM#batch_size": 3})
    with pytest.raises(InputError, match="has title 'Lungs', of which title#x is given a value"):
        read_study(write(), overrides={"title#x": 3})
    with pytest.raises(InputError, match=r"The file none\.json cannot be read"):
        read_study("none.json")
    other = write().with_name("other.json")
    other.write_text('{"metric": []}')
    with pytest.raises(InputError, match=r"study\.json; .*other\.json has 'metric'"):
        read_study([write(), other])
