"""Which part a case is in; empty files are enough."""

import json
import logging
from math import nan
from pathlib import Path
from typing import Any

import pytest

from common.data import disjoint_parts, labelled_cases, split_cases, splits
from common.data.layouts import SPLITS, DataSet, case_names, find_cases
from common.errors import InputError

from .conftest import Touch


@pytest.fixture
def folders(touch: Touch):
    """Make imagesTr and labelsTr of these names."""

    def make(*names: str) -> Path:
        return touch(
            *(f"{folder}/{n}.nii.gz" for folder in ("imagesTr", "labelsTr") for n in names)
        )

    return make


def cases(count: int) -> list[str]:
    return [f"case_{i:02d}" for i in range(count)]


def parts(root: Path, **arguments: Any) -> list[list[str]]:
    """The names of the cases for training, validation and test."""
    found = [split_cases(root, split, **arguments) for split in SPLITS]
    return [[case_names(case)[0] for case in part] for part in found]


def sizes(root: Path, **arguments: Any) -> list[int]:
    return [len(part) for part in parts(root, **arguments)]


def test_split_is_a_partition_and_depends_on_the_seed(folders: Any):
    root = folders(*cases(20))
    first = parts(root, seed=0)
    assert [len(part) for part in first] == [14, 2, 4]
    assert sorted(name for part in first for name in part) == cases(20)
    assert parts(root, seed=0) == first
    assert parts(root, seed=1) != first


def test_seeds_draw_what_they_drew_before(folders: Any):
    """By MONAI's partition_dataset, from cases sorted by their labels: of published numbers."""
    root = folders(*cases(10))
    assert parts(root)[1:] == [["case_03"], ["case_00", "case_05"]]
    assert parts(root, fold=1)[1:] == [["case_04", "case_03"], ["case_08", "case_07"]]


def test_bad_splits_are_named(folders: Any):
    root = folders("a")
    with pytest.raises(
        InputError, match=r"holds 1 labelled cases.*7:1:2 leaves none for validation; give more"
    ):
        split_cases(root, "validation")
    with pytest.raises(InputError, match="split is 'val'; allowed are training, validation, test"):
        split_cases(root, "val")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ratios", [5, (1, 2), "7,1,2", [7, 1, "2"], [7, 1, -2], [0, 0, 0], [7, True, 2], [7, 1, nan]]
)
def test_a_split_is_three_numbers(folders: Any, ratios: Any):
    with pytest.raises(InputError, match=r"The split is by .*; allowed are three numbers, none"):
        split_cases(folders(*cases(5)), "training", ratios)


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1]), (12, [9, 1, 2])]
)
def test_few_cases_leave_no_part_empty_and_none_out(
    folders: Any, caplog: pytest.LogCaptureFixture, count: int, expected: list[int]
):
    """MONAI's rounding left test empty of 5 cases, and one of 12 in no part."""
    root = folders(*cases(count))
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        found = parts(root)
    assert [len(part) for part in found] == expected
    assert sorted(name for part in found for name in part) == cases(count)
    said = [message for message in caplog.messages if "leaves none for" in message]
    assert len(said) == {3: 1, 4: 1, 5: 1, 12: 0}[count]
    assert all("it gets one of those for training" in message for message in said)


def test_a_part_without_a_share_is_empty_with_a_sentence(folders: Any):
    root = folders(*cases(5))
    assert len(split_cases(root, "training", (8, 2, 0))) == 4
    with pytest.raises(
        InputError, match=r"8:2:0 leaves none for test; .* in which test has a share"
    ):
        split_cases(root, "test", (8, 2, 0))
    with pytest.raises(InputError, match=r"1:0:0 leaves none for validation; .* has a share"):
        split_cases(root, "validation", (1, 0, 0))


def test_what_two_cases_leave_empty_is_said_at_training(
    folders: Any, caplog: pytest.LogCaptureFixture
):
    root = folders("a", "b")
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert len(split_cases(root, "training")) == 1
    assert caplog.messages[-1].endswith(
        "2 labelled cases, of which a split by 7:1:2 leaves none for test."
    )
    with pytest.raises(InputError, match="leaves none for test; give more cases"):
        split_cases(root, "test")


def test_lits_split_of_the_paper(folders: Any):
    root = folders(*(f"liver_{i}" for i in range(130)))
    found = parts(root, ratios=(100, 15, 15), seed=42)
    assert [len(part) for part in found] == [100, 15, 15]
    assert len({name for part in found for name in part}) == 130


def test_folds_test_every_case_once(folders: Any):
    root = folders(*cases(10))
    tested = []
    for fold in range(4):
        found = parts(root, seed=1, fold=fold, num_folds=4)
        assert sorted(name for part in found for name in part) == cases(10)
        tested += found[2]
    assert sorted(tested) == cases(10)
    with pytest.raises(InputError, match="fold is 4 of num_folds 4; allowed are 0 to"):
        split_cases(root, "test", fold=4, num_folds=4)
    with pytest.raises(InputError, match="holds 10 labelled cases, too few for 11 folds"):
        split_cases(root, "test", fold=10, num_folds=11)


def test_published_parts_are_kept(touch: Touch, caplog: pytest.LogCaptureFixture):
    for part, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        root = touch(*(f"{part}_{kind}/{n}.nii.gz" for kind in ("images", "masks") for n in names))
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert parts(root, ratios=(1, 1, 1), seed=5) == [["a", "b"], ["c"], ["d"]]
    assert caplog.messages == [
        f"{root} comes split: its own parts are used, not split and split_seed."
    ]
    assert parts(root, exclude=["b"]) == [["a"], ["c"], ["d"]]
    with pytest.raises(InputError, match="comes with its own split; allowed is no fold"):
        split_cases(root, "test", fold=0)
    for kind in ("images", "masks"):
        (root / f"test_{kind}/d.nii.gz").unlink()
    with pytest.raises(InputError, match="no labelled case for test; allowed is training and vali"):
        split_cases(root, "test")


def test_validation_is_drawn_from_training_where_none_is_published(touch: Touch):
    for part, names in (("train", cases(8)), ("test", ["x"])):
        root = touch(*(f"{part}/{kind}/{n}.nii" for kind in ("images", "masks") for n in names))
    found = parts(root)
    assert [len(part) for part in found] == [7, 1, 1]
    assert (sorted(found[0] + found[1]), found[2]) == (cases(8), ["x"])


def test_pooled_collections_are_split_by_patient(touch: Touch, caplog: pytest.LogCaptureFixture):
    """CirrMRI600+ has a folder of T1 and one of T2, each with its own parts; names are patients."""
    collections: dict[str, dict[str, str]] = {
        "Cirrhosis_T1_3D": {"train": "abc", "valid": "d", "test": "e"},
        "Cirrhosis_T2_3D": {"train": "abeg", "valid": "de", "test": "f"},
    }
    for collection, of in collections.items():
        for part, names in of.items():
            files = (f"{part}_{kind}/{n}.nii.gz" for kind in ("images", "masks") for n in names)
            root = touch(*(f"{collection}/{file}" for file in files))
    touch("Healthy_subjects/T1_W_Healthy/T1_images/1.nii.gz")
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert parts(root) == [["a", "b", "c", "a", "b", "g"], ["d", "d"], ["e", "f"]]
    assert [message for message in caplog.messages if "several parts" in message] == [
        f"Patients of {root} in several parts are left out of those for {part}: e."
        for part in ("validation", "training")
    ]


def test_folds_that_come_with_a_list(folders: Any):
    root = folders(*"abcd")
    entries = [
        {"image": f"imagesTr/{x}.nii.gz", "label": f"labelsTr/{x}.nii.gz", "fold": i % 3}
        for i, x in enumerate("abcd")
    ]
    (root / "dataset.json").write_text(json.dumps({"training": entries}))
    assert parts(root) == parts(root, fold=0) == [["b", "c"], ["a", "d"], ["a", "d"]]
    assert parts(root, fold=1, exclude=["c"]) == [["a", "d"], ["b"], ["b"]]
    with pytest.raises(InputError, match=r"fold is 3, but .* comes in the folds 0, 1, 2; allowed"):
        split_cases(root, "training", fold=3)
    content = {"training": entries[:3], "testing": [{k: entries[3][k] for k in ("image", "label")}]}
    (root / "dataset.json").write_text(json.dumps(content))
    assert parts(root, fold=1) == [["a", "c"], ["b"], ["d"]]


def test_published_parts_beside_folds_train_nothing(folders: Any, caplog: pytest.LogCaptureFixture):
    root = folders(*"abcdef")
    entry = {
        x: {"image": f"imagesTr/{x}.nii.gz", "label": f"labelsTr/{x}.nii.gz"} for x in "abcdef"
    }
    content = {
        "training": [entry["a"] | {"fold": 0}, entry["b"] | {"fold": 1}, entry["c"]],
        "validation": [entry["d"], entry["e"] | {"fold": 1}],
        "test": [entry["f"] | {"fold": 0}],
    }
    write(root, content, "dataset.json")
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert parts(root) == [["b", "c"], ["a"], ["f"]]
    assert caplog.messages == [
        f"{root} comes in folds, and fold is None: fold 0 is used.",
        f"Of {root} the part published for validation trains nothing in its folds.",
    ]
    assert parts(root, fold=1) == [["a", "c"], ["b", "e"], ["f"]]


def test_a_cases_file_may_come_split(touch: Touch):
    root = touch(*(f"{x}{kind}.nii" for x in "abc" for kind in ("", "_seg")))
    lines = [f"{x}.nii,{x}_seg.nii,{part}" for x, part in zip("abc", SPLITS, strict=True)]
    (root / "cases.csv").write_text("\n".join(["image,label,split", *lines]))
    assert parts(root, cases_file=root / "cases.csv") == [["a"], ["b"], ["c"]]


def write(root: Path, content: Any, name: str = "split.json") -> Path:
    (root / name).write_text(json.dumps(content))
    return root / name


def test_split_file(folders: Any, caplog: pytest.LogCaptureFixture):
    root = folders(*"abcde")
    file = write(root, {"training": ["b", "a"], "validation": ["c"], "test": ["d"]})
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert parts(root, split_file=file) == [["b", "a"], ["c"], ["d"]]
    assert caplog.messages == [f"Cases that {file} does not name are left out: e."]
    assert parts(root, split_file=str(file), exclude=["a"]) == [["b"], ["c"], ["d"]]
    file = write(root, {"training": ["a"]})
    with pytest.raises(
        InputError, match=r"holds no labelled case for test; allowed is training, or"
    ):
        split_cases(root, "test", split_file=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": ["a", "x", "y"]}, r"names x; y, of which the data set has no case"),
        (
            {"training": ["a"], "test": ["a"]},
            "has a both for training and for test; allowed is one",
        ),
        ({"training": ["b", "a", "b.nii"]}, "one case more than once: b and b.nii; allowed is"),
        ({"training": ["b", "a", "b"]}, "names one case more than once: b and b; allowed is once"),
        ({"train": ["a"]}, r"is no split_file; allowed is \{\"training\": "),
        ({"training": "a"}, "is no split_file"),
        ("a", "is no split_file"),
        ([["a"]], r"is not nnU-Net's splits_final\.json; allowed is \[\{\"train\""),
        ([{"train": ["a"], "val": ["b"]}], "fold is None, and .* has 1 folds; needed is one"),
    ],
)
def test_split_files_that_cannot_be_used(folders: Any, content: Any, message: str):
    root = folders("a", "b")
    with pytest.raises(InputError, match=message):
        split_cases(root, "training", split_file=write(root, content))
    with pytest.raises(InputError, match=r"gone\.json cannot be read"):
        split_cases(root, "training", split_file=root / "gone.json")


def test_names_of_two_cases_are_refused(touch: Touch):
    root = touch(*(f"{x}/{kind}/1.nii" for x in ("train", "test") for kind in ("images", "masks")))
    with pytest.raises(InputError, match="names 1, which several cases are called"):
        split_cases(root, "training", split_file=write(root, {"training": ["1"]}))


def test_names_of_two_cases_cannot_be_left_out(touch: Touch):
    for x in "AB":
        root = touch(*(f"{x}/{folder}/1.png" for folder in ("CXR_png", "mask")))
        touch(*(f"{x}/{folder}/{x}{i}.png" for i in range(3) for folder in ("CXR_png", "mask")))
    with pytest.raises(InputError, match="exclude names 1, which several cases are called"):
        split_cases(root, "training", exclude=["1", "A1"])
    assert sum(sizes(root, exclude=["A1", "B2"])) == 6


def test_no_case_is_compared_with_every_other(folders: Any, monkeypatch: pytest.MonkeyPatch):
    class Lone(dict):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("a list of thousands of cases would take minutes")

    def alone(*where: Any) -> DataSet:
        data = find_cases(*where)
        return data._replace(cases=[Lone(case) for case in data.cases])  # type: ignore[misc]

    root = folders(*cases(10))
    monkeypatch.setattr(splits, "find_cases", alone)
    assert sum(sizes(root, fold=0, exclude=["case_00"])) == 9
    names = {"training": cases(10)[:4], "validation": ["case_05"], "test": ["case_06"]}
    assert sizes(root, split_file=write(root, names), exclude=["case_00"]) == [3, 1, 1]


def test_nnunets_splits(folders: Any, caplog: pytest.LogCaptureFixture):
    root = folders(*"abc")
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]
    file = write(root.parent, folds, "folds.json")
    assert parts(root, split_file=file, fold=1) == [["c", "b"], ["a"], ["a"]]
    with pytest.raises(InputError, match=r"fold is 2, and .* has 2 folds; needed is one of them"):
        split_cases(root, "training", split_file=file, fold=2)
    with pytest.raises(InputError, match=r"fold is 1, but .* has no folds; allowed is no fold"):
        split_cases(root, "training", split_file=write(root, {"training": ["a"]}), fold=1)

    beside = write(root, folds, "splits_final.json")
    assert parts(root, fold=0) == [["a", "b"], ["c"], ["c"]]
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert sizes(root) == [1, 1, 1]
    assert f"{beside} is not used: it needs a fold, and fold is None." in caplog.messages


# What is left out


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-{}.nii", "segmentation-{}.nii"),
        ("imagesTr/liver_{}.nii.gz", "labelsTr/liver_{}.nii.gz"),
        ("imagesTr/liver_{}_0000.nii.gz", "labelsTr/liver_{}.nii.gz"),
    ],
)
def test_lits_without_ircadb(
    touch: Touch, image: str, label: str, caplog: pytest.LogCaptureFixture
):
    root = touch(*(name.format(i) for i in range(131) for name in (image, label)))
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        found = parts(root, exclude="lits_without_ircadb", ratios=(1, 1, 1))
    names = {name for part in found for name in part}
    numbers = {int(name.replace("-", "_").rsplit("_", 1)[1]) for name in names}
    assert numbers == {*range(28), *range(48, 131)}
    assert caplog.messages[-1] == f"Of the 131 cases of {root} exclude leaves out 20."


@pytest.fixture
def lits(folders: Any) -> Path:
    root: Path = folders(*(f"liver_{i}" for i in range(60)))
    return root


def test_what_is_trained_on_lits_cannot_be_tested_on_ircadb(
    lits: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        split_cases(lits, "validation")
        assert caplog.messages == []
        split_cases(lits, "training")
        assert caplog.messages == [
            f"{lits} has LiTS's cases 28 to 47, which are reported to be 3D-IRCADb-01's: what is "
            "trained with them cannot be tested on that; exclude lits_without_ircadb leaves them "
            "out."
        ]
        caplog.clear()
        assert sizes(lits, exclude="lits_without_ircadb", ratios=(2, 1, 1)) == [20, 10, 10]
        assert not any("3D-IRCADb-01" in message for message in caplog.messages)


def test_a_test_on_ircadb_says_what_may_not_have_been_trained(
    folders: Any, caplog: pytest.LogCaptureFixture
):
    root = folders(*(f"3Dircadb1_{i:02d}" for i in range(1, 21)))
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert len(split_cases(root, "test", (0, 0, 1))) == 20
    assert caplog.messages == [
        f"{root} is 3D-IRCADb-01, whose scans are reported to be LiTS's cases 28 to 47: this tests "
        "what was trained without them, or on other data, alone."
    ]


def test_lits_and_ircadb_in_one_data_set_are_refused(touch: Touch):
    names = ["liver_27", "liver_28", "liver_50", "3Dircadb1_01", "3Dircadb1_02"]
    root = touch(*(f"{x}/{name}.nii" for x in ("imagesTr", "labelsTr") for name in names))
    held_out = {"training": names[:2], "validation": names[2:3], "test": names[3:]}
    for split in SPLITS:
        with pytest.raises(InputError) as refused:
            split_cases(root, split, split_file=write(root, held_out))
        assert str(refused.value) == (
            f"{root} has 3D-IRCADb-01's 3Dircadb1_01, and of LiTS what are reported to be the same "
            "scans: liver_28; allowed are those of one, for which exclude lits_without_ircadb "
            "leaves out LiTS's."
        )
    kept = {"split_file": root / "split.json", "exclude": "lits_without_ircadb"}
    assert parts(root, **kept) == [["liver_27"], ["liver_50"], ["3Dircadb1_01", "3Dircadb1_02"]]


def test_cases_are_left_out_by_names_and_files(folders: Any):
    root = folders(*cases(6))
    left = cases(6)[2:]

    def remaining(exclude: Any) -> list[str]:
        return sorted(name for part in parts(root, exclude=exclude) for name in part)

    assert remaining(None) == remaining([]) == cases(6)
    assert remaining(["case_00", "case_01"]) == left
    assert remaining(write(root, ["case_00", "case_01"])) == left
    (root / "names.txt").write_text("# why\n\ncase_00\n case_01 \n")
    assert remaining(str(root / "names.txt")) == left
    with pytest.raises(
        InputError, match=r"exclude names 'case_9', of which .* has no case; allowed"
    ):
        remaining(["case_00", "case_9"])
    with pytest.raises(InputError, match=r"exclude is 'lits_without_ircadb', and .* has no case"):
        remaining("lits_without_ircadb")
    assert remaining("case_00") == cases(6)[1:]
    assert remaining(["case_00.nii.gz", "case_01.NII"]) == left
    with pytest.raises(
        InputError, match=r"exclude names 'gone\.txt', .* has no case; .* or one of .* lits_without"
    ):
        remaining("gone.txt")
    with pytest.raises(InputError, match=r"exclude names 'x{300}', of which"):
        remaining("x" * 300)
    with pytest.raises(InputError, match="holds no list of names; allowed is"):
        remaining(write(root, {"training": []}))
    with pytest.raises(InputError, match=r"holds 0 labelled cases.* leaves none for training"):
        remaining(cases(6))


def test_a_case_may_be_called_as_its_image_or_its_label(touch: Touch):
    root = touch("imagesTr/p_0000.nii", "imagesTr/p_0001.nii", "labelsTr/p_seg.nii")
    (case,) = labelled_cases(root)
    assert case_names(case) == ["p", "p_seg", "p_0000", "p_0001"]


def test_a_name_is_of_the_case_that_is_called_so_first(folders: Any):
    """p_2019's image could be a channel of p, going by its name."""
    root = folders("p", "p_2019", "q")
    file = write(root, {"training": ["p"], "validation": ["p_2019"], "test": ["q"]})
    assert parts(root, split_file=file) == [["p"], ["p_2019"], ["q"]]


@pytest.mark.parametrize(("name", "value"), [("fold", "all"), ("fold", 0.0), ("seed", "a")])
def test_numbers_of_a_split(touch: Touch, name: str, value: object):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii")
    with pytest.raises(InputError, match=f"{name} is {value!r}; allowed are whole numbers"):
        split_cases(root, "training", **{name: value})  # type: ignore[arg-type]


def test_a_number_is_no_list_to_exclude(touch: Touch):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii")
    with pytest.raises(InputError, match="exclude names '0', of which"):
        split_cases(root, "training", exclude=0)  # type: ignore[arg-type]


def test_names_in_lists_may_have_endings(folders: Any):
    root = folders("a", "b.1", "c")
    file = write(root, {"training": ["a.nii.gz"], "validation": ["b.1.NII"], "test": ["c"]})
    assert parts(root, split_file=file) == [["a"], ["b.1"], ["c"]]


def test_one_case_by_two_of_its_names(touch: Touch):
    root = touch(
        "imagesTr/c2_0000.nii", "labelsTr/c2.nii", "imagesTr/c1_0000.nii", "labelsTr/c1.nii"
    )
    file = write(root, {"training": ["c2", "c2_0000"], "validation": ["c1"]})
    with pytest.raises(InputError, match=r"one case more than once: c2 and c2_0000; allowed"):
        split_cases(root, "validation", split_file=file)
    assert split_cases(root, "training", (1, 0, 0), exclude=["c2", "c2_0000"]) != []


def test_cases_whose_labels_are_called_alike_go_by_their_folders(touch: Touch):
    root = touch(*(f"p{i}/{kind}.nii" for i in range(4) for kind in ("ct", "seg")))
    lines = [f"p{i}/ct.nii,p{i}/seg.nii" for i in range(4)]
    (root / "cases.csv").write_text("\n".join(["image,label", *lines]))
    names = {"training": ["p0", "p1/seg"], "validation": ["p2/seg.nii"], "test": ["p3"]}
    for split, expected in zip(SPLITS, ([0, 1], [2], [3]), strict=True):
        found = split_cases(
            root, split, split_file=write(root, names), cases_file=root / "cases.csv"
        )
        assert [case["label"] for case in found] == [str(root / f"p{i}/seg.nii") for i in expected]
    with pytest.raises(InputError, match="names seg, which several cases are called"):
        split_cases(root, "test", exclude=["seg"], cases_file=root / "cases.csv")


def test_names_of_which_one_ends_as_masks_do(folders: Any):
    root = folders("a", "a_seg", "b")
    file = write(root, {"training": ["a"], "validation": ["a_seg"], "test": ["b"]})
    found = [split_cases(root, split, split_file=file) for split in SPLITS]
    assert [Path(part[0]["label"]).name for part in found] == [
        *("a.nii.gz", "a_seg.nii.gz", "b.nii.gz")
    ]


def test_the_data_set_is_searched_once_for_all_parts(folders: Any, monkeypatch: pytest.MonkeyPatch):
    root = folders(*cases(10))
    searched = []

    def counted(*where: Any) -> DataSet:
        searched.append(where)
        return find_cases(*where)

    monkeypatch.setattr(splits, "find_cases", counted)
    assert sizes(root) == [7, 1, 2]
    assert len(searched) == 1
    folders("case_10")
    assert sum(sizes(root)) == 11, "a part that was handed out is asked for: it is another run"
    assert len(searched) == 2
    (root / "cases.csv").write_text("image,label\nimagesTr/case_01.nii.gz,labelsTr/case_01.nii.gz")
    split_cases(root, "training")
    with pytest.raises(InputError, match="holds 1 labelled cases"):
        split_cases(root, "validation", cases_file=root / "cases.csv")
    assert len(searched) == 4


def names_of(found: dict[Any, dict[str, Any]]) -> list[list[str]]:
    return [list(found[split]) for split in SPLITS]


def test_parts_that_share_no_case_are_those_of_the_split(folders: Any):
    root = folders(*cases(20))
    for fold in (None, 0, 4):
        assert names_of(disjoint_parts(root, fold=fold)) == parts(root, fold=fold)


def test_nnunets_folds_are_tested_and_validation_is_drawn_from_training(folders: Any):
    """Their validation is their test: what chose the weights there would be what is tested."""
    root = folders(*cases(20))
    folds = [
        {"train": [n for n in cases(20) if int(n[-2:]) % 5 != f], "val": cases(20)[f::5]}
        for f in range(5)
    ]
    (root / "splits_final.json").write_text(json.dumps(folds))
    assert parts(root, fold=1)[1] == parts(root, fold=1)[2]  # what is to be avoided
    tested: list[str] = []
    for fold in range(5):
        training, validation, test = names_of(disjoint_parts(root, fold=fold))
        assert test == folds[fold]["val"]
        assert sorted(training + validation) == folds[fold]["train"]
        assert len(validation) == 2  # of 16, by 7:1
        assert not set(training) & set(validation)
        tested += test
    assert sorted(tested) == cases(20)
    assert disjoint_parts(root, fold=1) == disjoint_parts(root, fold=1)


def of_folds(**listed: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Auto3DSeg's list, in which every third of "training" is a fold."""
    return {
        part: [
            {"image": f"imagesTr/{x}.nii.gz", "label": f"labelsTr/{x}.nii.gz"}
            | ({"fold": i % 3} if part == "training" else {})
            for i, x in enumerate(names)
        ]
        for part, names in listed.items()
    }


@pytest.mark.parametrize("way", ["drawn", "drawn folds", "folds", "folds and tests", "nnU-Net's"])
@pytest.mark.parametrize("seed", [0, 1])
def test_in_no_way_is_a_test_case_trained_on_or_validated_with(folders: Any, way: str, seed: int):
    """And every case that is not excluded is in one part."""
    names = cases(20)
    root = folders(*names)
    given: dict[str, Any] = {"seed": seed, "exclude": ["case_03"], "ratios": (3, 1, 1)}
    if way == "drawn folds":
        given |= {"fold": 3, "num_folds": 4}
    elif way == "folds":
        given |= {"fold": 2}
        write(root, of_folds(training=names), "dataset.json")
    elif way == "folds and tests":
        given |= {"fold": 2}
        write(root, of_folds(training=names[:15], test=names[15:]), "dataset.json")
    elif way == "nnU-Net's":
        given |= {"fold": 1}
        folds = [{"train": names[:10], "val": names[10:]}, {"train": names[6:], "val": names[:6]}]
        write(root, folds, "splits_final.json")
    training, validation, test = map(set, names_of(disjoint_parts(root, **given)))
    assert test == set(parts(root, **given)[2])
    assert not test & (training | validation)
    assert not training & validation
    assert training | validation | test == {*names} - {"case_03"}
    if way in ("folds", "nnU-Net's"):
        assert abs(len(training) - 3 * len(validation)) < 4  # drawn by 3:1


def test_what_is_drawn_from_training_depends_on_the_seed(folders: Any):
    root = folders(*cases(20))
    write(root, [{"train": cases(20)[4:], "val": cases(4)}], "splits_final.json")
    drawn = {tuple(disjoint_parts(root, fold=0, seed=seed)["validation"]) for seed in range(5)}
    assert len(drawn) > 1


def test_validation_has_a_share_where_ratios_leave_it_none(folders: Any):
    root = folders(*cases(10))
    folds = [{"train": cases(8), "val": cases(10)[8:]}]
    (root / "splits.json").write_text(json.dumps(folds))
    found = disjoint_parts(root, (1, 0, 0), fold=0, split_file=root / "splits.json")
    assert [len(part) for part in found.values()] == [7, 1, 2]


def test_names_of_parts_are_those_of_a_split_file(touch: Touch):
    """Also of cases whose files are called alike."""
    patients = [f"p{i}" for i in range(10)]
    rows = [{"image": f"{p}/scan.nii.gz", "label": f"{p}/seg.nii.gz"} for p in patients]
    root = touch(*(file for row in rows for file in row.values()))
    (root / "cases.json").write_text(json.dumps(rows))
    found = disjoint_parts(root, cases_file=root / "cases.json")
    (root / "split.json").write_text(json.dumps({k: list(part) for k, part in found.items()}))
    again = disjoint_parts(root, split_file=root / "split.json", cases_file=root / "cases.json")
    assert again == found
    assert set(found["test"]) < {f"{p}/seg" for p in patients}
