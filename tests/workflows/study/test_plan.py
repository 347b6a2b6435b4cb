"""The cases of a study and its runs' command lines."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.data import image_files, split_cases
from common.data.layouts import case_key, case_names
from common.data.outputs import OutputLayout
from common.errors import InputError
from common.workflows.study.cases import check_folds, folds_of, write_folds
from common.workflows.study.definition import read_study
from common.workflows.study.jobs import Job
from common.workflows.study.plan import jobs_of

from .conftest import BUNDLES, LIVER, LUNG, Write

CASCADE = "liver_tumor_ct_elanres_msca_segmentation"


def planned(file: Path, output: Path, **given: Any) -> list[Job]:
    study = read_study(file, **given)
    return jobs_of(study, folds_of(study, output), output)


def options(command: tuple[str, ...]) -> dict[str, str]:
    words = command[command.index("run") + 1 :]
    return {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_a_run_is_what_one_would_type(write: Write, radiographs: Path, tmp_path: Path):
    out = tmp_path / "out"
    own = {"network_def#dropout_rate": 0.1, "augmentation": "none"}
    own |= {"loss": {"_target_": "X", "a": None}, "epoch_length": None}
    file = write(
        data={"dataset_dir": str(radiographs), "folds": [1], "seeds": [4], "num_folds": 5},
        inference={"test_time_flips": True},
        rows={"A": {"bundle": str(BUNDLES / LUNG), "configs": ["networks/unetr.json"], **own}},
    )
    (job,) = planned(file, out)
    root = out / "runs/A/fold1_seed4"
    assert job.folder == str(root)
    training, prediction = job.steps
    assert training.command[:4] == (sys.executable, "-m", "monai.bundle", "run")
    configs = BUNDLES / LUNG / "configs"
    assert options(training.command) == {
        "config_file": str([str(configs / "train.json"), str(configs / "networks/unetr.json")]),
        "bundle_root": str(root),
        "dataset_dir": str(radiographs.resolve()),
        "split_file": str(out / "splits/fold1.json"),
        "seed": "4",
        "max_epochs": "2",
        "network_def#dropout_rate": "0.1",
        "augmentation": "none",
        "loss": "{'_target_': 'X', 'a': None}",
        "epoch_length": "$None",
    }
    assert options(prediction.command) == {
        "config_file": str(configs / "inference.json"),
        "bundle_root": str(root),
        "dataset_dir": str(out / "splits/fold1"),
        "output_dir": str(root / "predictions"),
        "test_time_flips": "True",
    }
    assert shlex.split(shlex.join(training.command)) == list(training.command)
    assert not out.exists()


def test_rows_of_a_fold_and_seed_stand_together(write: Write, radiographs: Path, tmp_path: Path):
    file = write(
        data={"dataset_dir": str(radiographs), "folds": [0, 1], "seeds": [0, 1]},
        rows={name: {"bundle": str(BUNDLES / LUNG)} for name in "AB"},
    )
    names = [job.name for job in planned(file, tmp_path)]
    assert names[:3] == ["A, fold 0, seed 0", "B, fold 0, seed 0", "A, fold 0, seed 1"]
    assert len(names) == 8
    (alone,) = planned(write(), tmp_path)
    assert alone.name == "LightM-UNet, seed 0"
    assert alone.folder.endswith("runs/LightM-UNet/seed0")


def test_a_cascade_trains_its_stages_in_one_run(write: Write, tmp_path: Path):
    (job,) = planned(write(rows={"A": {"bundle": str(BUNDLES / CASCADE)}}), tmp_path)
    assert [step.name for step in job.steps] == [
        "training of the stage liver",
        "training of the stage tumor",
        "prediction",
    ]
    roots = {options(step.command)["bundle_root"] for step in job.steps}
    assert len(roots) == 1
    with pytest.raises(InputError, match="sets stage, which each run sets itself"):
        read_study(write(rows={"A": {"bundle": str(BUNDLES / CASCADE), "stage": "tumor"}}))


def test_minutes_are_shared_by_the_stages_and_told_by_a_warm_up(write: Write, tmp_path: Path):
    rows = {"A": {"bundle": str(BUNDLES / CASCADE)}}
    (job,) = planned(write(rows=rows, budget={"minutes": 10}), tmp_path)
    assert [step.name.split()[0] for step in job.steps][:2] == ["warm-up", "training"]
    warm_up, training = job.steps[2:4]
    assert training.seconds == 300
    assert options(warm_up.command)["bundle_root"] == training.warm_up
    assert options(warm_up.command)["max_epochs"] == "4"
    assert options(warm_up.command)["stage"] == options(training.command)["stage"] == "tumor"
    assert "max_epochs" not in options(training.command)
    folders = {step.warm_up for step in job.steps if step.warm_up} | {job.folder}
    assert len(folders) == 3, "a warm-up leaves the training's weights and the other stage's alone"
    assert options(training.command)["bundle_root"] == job.folder


def test_a_plan_sees_the_trainings_cases_alone(write: Write, radiographs: Path, tmp_path: Path):
    file = write(
        plan={"gpu_memory": 4},
        rows={
            "A": {
                "bundle": str(BUNDLES / LUNG),
                "configs": ["networks/segresnet.json"],
                "network_def#act": "prelu",
                "batch_size": 2,
            }
        },
    )
    (job,) = planned(file, tmp_path)
    plan, training, _ = job.steps
    words = list(plan.command)
    assert words[1:4] == ["-m", "common", "plan"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert given["--split_file"] == options(training.command)["split_file"]
    assert given["--batch_size"] == "2"
    assert given["--gpu_memory"] == "4"
    assert "--network_def#act" not in given  # which train.json has not
    configs = BUNDLES / LUNG / "configs"
    files = [
        str(configs / "train.json"),
        given["--output"],
        str(configs / "networks/segresnet.json"),
    ]
    assert options(training.command)["config_file"] == str(files)


def test_tests_are_found_by_name(write: Write, radiographs: Path, tmp_path: Path):
    """The images as inference.json looks for them, masks by the same names, and their labels."""
    study = read_study(write(), overrides={"data#folds": [0, 1]})
    folds = folds_of(study, tmp_path)
    write_folds(folds, tmp_path)
    write_folds(folds, tmp_path)
    for fold in folds:
        given = {"fold": fold.number, "split_file": None}
        expected = split_cases(radiographs, "test", **given)
        again = split_cases(radiographs, "test", split_file=fold.split_file)
        assert list(map(case_key, expected)) == list(map(case_key, again))
        assert set(fold.names["test"]) == {case_names(case)[0] for case in expected}
        assert not set(fold.names["test"]) & {*fold.names["training"], *fold.names["validation"]}
        images = image_files(fold.images, 2)
        (tmp_path / "out").mkdir(exist_ok=True)
        masks = OutputLayout(tmp_path / "out", fold.images, extension=".png").plan(images)
        assert {mask.name for mask in masks.values()} == {f"{n}_seg.png" for n in fold.test}
        for name in fold.test:
            image = tmp_path / f"images/{name}.png"
            assert os.path.realpath(image) == os.path.realpath(fold.test[name]["image"])
            left, right = (
                np.asarray(Image.open(radiographs / f"ManualMask/{side}Mask/{name}.png")) > 0
                for side in ("left", "right")
            )
            label = np.asarray(Image.open(tmp_path / f"labels/{name}.png"))
            np.testing.assert_array_equal(label, 255 * (left | right))


def test_cases_that_are_called_alike(write: Write, tmp_path: Path):
    patients = [f"p{i}" for i in range(10)]
    cases = [{"image": f"{p}/scan.nii.gz", "label": f"{p}/a_seg.nii.gz"} for p in patients]
    for case in cases:
        for file in case.values():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    study = read_study(write(data={"dataset_dir": str(tmp_path), "cases": "cases.json"}))
    (fold,) = folds_of(study, tmp_path)
    write_folds([fold], tmp_path)
    assert set(fold.test) <= {f"{p}-a" for p in patients}
    for name, case in fold.test.items():
        link = fold.images / f"imagesTs/{name}_0000.nii.gz"
        assert str(link.resolve()) == os.path.realpath(case["image"])
        assert (tmp_path / f"labels/{name}.nii.gz").resolve().parent.name == name[:2]


def test_channels_stay_together(write: Write, tmp_path: Path):
    for i in range(6):
        for name in (f"imagesTr/c{i}_0000", f"imagesTr/c{i}_0001", f"labelsTr/c{i}"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.nii.gz").touch()
    study = read_study(
        write(
            data={"dataset_dir": str(tmp_path)},
            rows={"A": {"bundle": str(BUNDLES / LIVER), "in_channels": 2}},
        )
    )
    (fold,) = folds_of(study, tmp_path / "out")
    write_folds([fold], tmp_path / "out")
    (name,) = fold.test
    assert image_files(fold.images) == [
        [str(fold.images / f"imagesTs/{name}_000{i}.nii.gz") for i in range(2)]
    ]


def test_other_cases_than_before_are_refused(write: Write, tmp_path: Path, radiographs: Path):
    study = read_study(write())
    folds = folds_of(study, tmp_path)
    check_folds(folds)
    write_folds(folds, tmp_path)
    check_folds(folds_of(study, tmp_path))
    other = read_study(write(), overrides={"data#split_seed": 1})
    with pytest.raises(InputError, match=r"The cases for training are not those of .*split\.json"):
        check_folds(folds_of(other, tmp_path))


def test_voxels_in_a_second_file_are_refused(write: Write, tmp_path: Path):
    for i in range(6):
        for name in (f"imagesTr/c{i}.mhd", f"labelsTr/c{i}.nii.gz"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    study = read_study(
        write(data={"dataset_dir": str(tmp_path)}, rows={"A": {"bundle": str(BUNDLES / LIVER)}})
    )
    with pytest.raises(InputError, match=r"c\d\.mhd has its voxels in another file"):
        folds_of(study, tmp_path / "out")
