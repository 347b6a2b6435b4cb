"""Our bundles and nnU-Net at equal training time, on one fold of nnU-Net's five as the test.

    python -m benchmarks.yardstick --data ../shared/data/hippocampus_mr --work DIR
        [--minutes 30] [--fold 0] [--only bundle-lightm nnunet] [--cases N] [--iterations 25]
        [--modality MR] [--seed 0] [--overrides '{"batch_size": 2, "learning_rate": 0.001}']

The data set has imagesTr and labelsTr, NIfTI files of the same names. The four:

- bundle-lightm: the bundle liver_ct_lightm_unet_segmentation, with nnU-Net's plan, and what
  --overrides says of train.json (results.json has it);
- bundle-segresnet: the same with SegResNet, by configs/networks/segresnet.json, overrides included;
- nnunet: nnU-Net's 3d_fullres as it is;
- nnunet-lightm: LightM-UNet inside nnU-Net, by this package's trainer.

Each sees the cases of the other folds alone, planning included. Its training has the time that is
given, from the first iteration on, and a polynomial schedule that ends with it. Preparing the cases
and a bundle's validation are outside of it; nnU-Net's clock has its online validation, which is one
iteration an epoch here. A bundle's epochs are as many as fit, by the median of a first training's
after its first. nnU-Net augments in processes beside training, here in one (nnUNet_n_proc_DA), and
a bundle on a CPU in training's own: each may use all cores. Final weights predict the test cases,
with flips for all, and one piece of code measures Dice. nnU-Net's folders, the masks and
results.json are in DIR. The same command goes on where it was stopped: what results.json has, by
the same options on the same machine, is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.cli.output import say, table
from common.evaluation import dice_per_class
from common.files import write_json
from common.measure import machine

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles/liver_ct_lightm_unet_segmentation"
NAME = "Dataset900_Yardstick"
CONTENDERS = ("bundle-lightm", "bundle-segresnet", "nnunet", "nnunet-lightm")
TRAINERS = {"nnunet": "TimedNNUNetTrainer", "nnunet-lightm": "TimedLightMUNetTrainer"}
WARM_UP = 4  # epochs, of which the first is left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for all that is written")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, each")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--cases", type=int, help="the first so many alone, to try it")
    parser.add_argument("--iterations", type=int, default=25, help="of an epoch of a bundle's")
    parser.add_argument("--modality", default="MR")
    parser.add_argument("--seed", type=int, default=0, help="of the bundles' trainings")
    parser.add_argument("--overrides", type=json.loads, default={}, help="of both bundles, JSON")
    options = parser.parse_args()

    work = options.work.absolute()
    test = prepare(options.data, work, options.fold, options.cases, options.modality)
    setting: dict[str, Any] = {
        "machine": machine("cpu", os.cpu_count() or 1),
        "minutes": options.minutes,
        "fold": options.fold,
        "iterations": options.iterations,
        "seed": options.seed,
        "overrides": options.overrides,
        "test": test,
    }
    results = resumed(work / "results.json", setting)
    left = [name for name in options.only if name not in results]
    if any(name in TRAINERS for name in left):
        plan_and_preprocess(work)
    for name in left:
        say(f"{name}: training for {options.minutes:g} minutes")
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        if name in TRAINERS:
            told = run_nnunet(TRAINERS[name], work, folder, options.minutes * 60)
        else:
            told = run_bundle(name, work, folder, options)
        results[name] = told | evaluate(folder / "masks", work / "raw" / NAME / "labelsTs", test)
        write_json(work / "results.json", results)
    say(report(results, options.only))


def resumed(file: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """What the file has, if it is of the same setting; else the setting alone."""
    before = json.loads(file.read_text()) if file.exists() else {}
    return before if {name: before.get(name) for name in setting} == setting else setting


def prepare(data: Path, work: Path, fold: int, cases: int | None, modality: str) -> list[str]:
    """Write a raw data set of nnU-Net's, the fold's cases as its test; the names of these.

    The folds are nnU-Net's: sorted names, shuffled by seed 12345, in five parts.
    """
    from sklearn.model_selection import KFold

    files = (data / "labelsTr").glob("*.nii.gz")
    names = sorted(file.name.removesuffix(".nii.gz") for file in files)[:cases]
    folds = [test for _, test in KFold(5, shuffle=True, random_state=12345).split(names)]
    test = [names[i] for i in folds[fold]]
    raw = work / "raw" / NAME
    shutil.rmtree(raw, ignore_errors=True)
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / part).mkdir(parents=True)
    classes = 0
    for name in names:
        part = "Ts" if name in test else "Tr"
        shutil.copy(data / f"imagesTr/{name}.nii.gz", raw / f"images{part}/{name}_0000.nii.gz")
        shutil.copy(data / f"labelsTr/{name}.nii.gz", raw / f"labels{part}")
        classes = max(classes, int(np.max(nib.load(data / f"labelsTr/{name}.nii.gz").dataobj)))
    labels = {"background": 0} | {f"class {i}": i for i in range(1, classes + 1)}
    about = {
        "channel_names": {"0": modality},
        "labels": labels,
        "numTraining": len(names) - len(test),
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", about)
    return test


def environment(work: Path, seconds: float = 0.0) -> dict[str, str]:
    folders = (ROOT / "benchmarks/nnunet_timed", ROOT / "common/nnunet")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/cpu_torchvision")]),
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        "nnUNet_results": str(work / "results"),
        "nnUNet_extTrainer": os.pathsep.join(map(str, folders)),
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": str(os.cpu_count()),
        "YARDSTICK_SECONDS": str(seconds),
    }


def call(log: Path, command: Sequence[object], environment: Mapping[str, str]) -> None:
    """Run a command, its output to a file.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    with log.open("a") as stream:
        typed = [str(word) for word in command]
        done = subprocess.run(
            typed, cwd=ROOT, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(typed)} failed; see {log}:\n{log.read_text()[-2000:]}")


def nnunet_command(name: str) -> list[str]:
    return [str(Path(sys.executable).with_name(f"nnUNetv2_{name}"))]


def plan_and_preprocess(work: Path) -> None:
    shutil.rmtree(work / "preprocessed", ignore_errors=True)
    shutil.rmtree(work / "results", ignore_errors=True)
    command = [*nnunet_command("plan_and_preprocess"), "-d", NAME[7:10], "-c", "3d_fullres"]
    processes = os.cpu_count() or 1
    call(work / "plan.log", [*command, "-npfp", processes, "-np", processes], environment(work))


def run_nnunet(trainer: str, work: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Train with all cases that are left, and predict those for test; what training took."""
    folder.mkdir()
    environ = environment(work, seconds)
    call(folder / "train.log", [sys.executable, "-u", "-c", TRAIN, NAME[7:10], trainer], environ)
    which = ["-d", NAME[7:10], "-c", "3d_fullres", "-tr", trainer, "-f", "all", "-device", "cpu"]
    images = work / "raw" / NAME / "imagesTs"
    predict = [*nnunet_command("predict"), "-i", images, "-o", folder / "masks", *which]
    call(folder / "predict.log", predict, environ)
    trained = work / "results" / NAME / f"{trainer}__nnUNetPlans__3d_fullres/fold_all"
    return dict(json.loads((trained / "yardstick.json").read_text()))


# As nnUNetv2_train does, but without predicting what it was trained on at the end.
TRAIN = """
import sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
_, dataset, name = sys.argv
trainer = get_trainer_from_args(dataset, "3d_fullres", "all", name, device=torch.device("cpu"))
trainer.run_training()
"""


def run_bundle(name: str, work: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train with all cases but one, which is validated in the end, and predict those for test."""
    folder.mkdir()
    raw = work / "raw" / NAME
    training = len(list((raw / "labelsTr").iterdir()))
    split = [training - 1, 1, 0]
    plan = folder / "plan.json"
    planning = {
        "bundle": BUNDLE,
        "dataset_dir": raw,
        "output": plan,
        "split": split,
        "modality": options.modality,
    }
    command = [sys.executable, "-m", "common", "plan", *words(planning)]
    call(folder / "plan.log", command, os.environ)
    files = [BUNDLE / "configs/train.json", plan]
    if name == "bundle-segresnet":
        files.append(BUNDLE / "configs/networks/segresnet.json")
    given = options.overrides | {
        "dataset_dir": raw,
        "split": split,
        "cache_num": training,
        "epoch_length": options.iterations,
        "seed": options.seed,
    }
    warm = folder / "warm_up"
    epochs = train_bundle(files, warm, {**given, "max_epochs": WARM_UP, "val_interval": WARM_UP})
    seconds = statistics.median(training_seconds(epochs[1:]))
    max_epochs = max(1, math.floor(options.minutes * 60 / seconds))
    given |= {"max_epochs": max_epochs, "val_interval": max_epochs}
    epochs = train_bundle(files, folder, given)
    predict = {
        "config_file": BUNDLE / "configs/inference.json",
        "bundle_root": folder,
        "dataset_dir": raw / "imagesTs",
        "output_dir": folder / "masks",
        "test_time_flips": True,
    }
    call(folder / "predict.log", bundle_command(predict), environment(work))
    return {"seconds": round(sum(training_seconds(epochs)), 1), "epochs": max_epochs}


def train_bundle(files: list[Path], root: Path, given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of learning_curves.csv."""
    root.mkdir(exist_ok=True)
    config = str([str(file) for file in files])
    command = bundle_command({"config_file": config, "bundle_root": root, **given})
    call(root / "train.log", command, os.environ)
    with (root / "eval/learning_curves.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def bundle_command(options: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *words(options)]


def words(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def training_seconds(epochs: Sequence[Mapping[str, str]]) -> list[float]:
    return [float(row["seconds"]) - float(row["validation_seconds"] or 0) for row in epochs]


def evaluate(masks: Path, labels: Path, test: Sequence[str]) -> dict[str, Any]:
    """Mean Dice of each class over the test cases, and the mean of these.

    As nnU-Net counts: a class that neither label nor mask has is left out there, one that the mask
    alone has is 0.
    """
    files = {path.name.partition(".")[0]: path for path in masks.rglob("*.nii.gz")}
    scores: dict[str, list[float]] = {}
    for name in test:
        mask = next(files[n] for n in (name, f"{name}_seg") if n in files)
        for class_name, score in dice_per_class(mask, labels / f"{name}.nii.gz").items():
            if not math.isnan(score):
                scores.setdefault(class_name, []).append(score)
    means = {class_name: round(statistics.mean(x), 4) for class_name, x in scores.items()}
    return {"dice": means, "mean_dice": round(statistics.mean(means.values()), 4)}


def report(results: Mapping[str, Any], names: Sequence[str]) -> str:
    classes = list(dict.fromkeys(x for name in names for x in results[name]["dice"]))
    head = ["training", "seconds", *classes, "mean"]
    rows = []
    for name in names:
        found = results[name]
        scores = [found["dice"].get(class_name) for class_name in classes]
        shown = ["-" if score is None else f"{score:.3f}" for score in scores]
        rows.append([name, f"{found['seconds']:.0f}", *shown, f"{found['mean_dice']:.3f}"])
    return f"On {results['machine']}:\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
