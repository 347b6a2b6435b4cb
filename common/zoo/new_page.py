"""What a new bundle says of itself, and leaves for its maker to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MARK = "FILL IN"  # in each line that is the maker's to write

# Ids of train.json that make the recipe, and whether a network's own recipe has them.
_RECIPE = {
    **dict.fromkeys(("spacing", "patch_size", "image_size", "intensity", "augmentation"), False),
    **dict.fromkeys(("batch_size", "loss"), False),
    **dict.fromkeys(("optimizer", "learning_rate", "lr_scheduler"), True),
    **dict.fromkeys(("max_epochs", "epoch_length"), True),
}
_PAGE = """\
# {title}

**{mark}:** the network and its paper, what it segments, and in which images; a drawing of it,
`architecture.png`.

## Model details
Input: {images}, one channel. Output: {values}, on the image's own grid. No weights are shipped:
train your own.

## Intended use
Research and education; not a medical device. **{mark}:** for whom, on which images.

### Out of scope
**{mark}:** what it is not for: other modalities, parts of the body, patients.

## Data
### Training data
**{mark}:** the data that it is made for, where they are, and under which licence.

### Evaluation data
A test split of these; patients that no training saw. **{mark}:** which.

## Commands
All commands run in this folder. From elsewhere, give the configs' full paths and `--bundle_root`
this folder.

### Train
    python -m common check --dataset_dir DIR
    python -m monai.bundle run --config_file configs/train.json --dataset_dir DIR

The first says what is wrong with your data; layouts, formats, labels and splits that are read:
`docs/data.md` of the project. The second writes the weights of the best validation Dice to
`models/model.pt`, and curves to `eval`. It goes on after an interruption by `--resume True`. Every
key of `configs/train.json` can be overridden. Inference and evaluation take from the weights what
their training was told.

`python -m common plan --bundle . --dataset_dir DIR --output plan.json` has nnU-Net plan sizes,
batch and intensities for your data: `docs/planning.md` of the project.

### Segment
`--dataset_dir` is one image, or a folder of them; each mask appears in `eval` as
`<name>_seg{ending}`.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir image{ending}

### Evaluate
On the test split, on the labels' own grid. `eval/cases.csv` has a row per case and class:
`docs/evaluation.md` of the project.

    python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" \\
        --dataset_dir DIR

## Deviations from the paper
**{mark}:** what the paper says, what its released code does, what is done here, and why.

| of `configs/train.json` | here | so far as in |
| --- | --- | --- |
{recipe}

## Results
### Metrics
Dice and surface distances of each class: `docs/evaluation.md` of the project.

### Measured here and claimed
**{mark}:** what was measured, on which data, how and by whom, and what is the paper's claim.

| | measured here | the paper's claim |
| --- | --- | --- |

## Limitations and risks
**{mark}:** where it fails, and what follows from that.

## Licence
Code and configs: Apache-2.0. **{mark}:** of the data, and of weights.

## Citation
**{mark}:** the paper.
"""


class About(NamedTuple):
    """A new bundle.

    Attributes:
        anatomy: what is segmented, as its name has it.
        images: what they are, such as CT.
        labels: the classes' names, the background's first.
        network: its class.
        recipe: the file of ``configs/networks`` that it is trained by; None is as in `like`.
        like: the bundle whose pieces it has.
        spatial_dims: 3 of volumes, 2 of pictures.
    """

    anatomy: str
    images: str
    labels: list[str]
    network: str
    recipe: str | None
    like: str
    spatial_dims: int

    @property
    def task(self) -> str:
        return f"{_capital(self.anatomy)} segmentation in {self.images}"

    @property
    def values(self) -> str:
        return ", ".join(f"{value} is {label}" for value, label in enumerate(self.labels))


def to_describe(about: About) -> dict[str, Any]:
    """The parts of metadata.json that are words."""
    return {
        "name": f"{about.task} with {about.network}",
        "task": about.task,
        "organ": _capital(about.anatomy),
        "description": f"{MARK}: the network, what it segments and in which images, and where its "
        "weights come from.",
        "authors": f"{MARK}: who made the bundle",
        "copyright": f"{MARK}: Copyright (c) whose",
        "data_source": f"{MARK}: the data that it is made for, and where they are",
        "intended_use": "Research. Not a medical device; not for diagnosis or treatment.",
        "references": [
            f"{MARK}: the network's paper, with its arXiv number or its doi",
            f"{MARK}: the paper of the data",
        ],
    }


def page(about: About, train: Mapping[str, Any]) -> str:
    """docs/README.md, with the recipe that train.json has so far."""
    files = {True: about.recipe and f"`configs/networks/{about.recipe}.json`", False: None}
    found = {id_: (train[id_], own) for id_, own in _RECIPE.items() if id_ in train}
    loss = train["train"]["trainer"]["loss_function"]
    if loss != "@loss":  # the recipe's, mostly around that
        whole = {key: train["loss"] if x == "@loss" else x for key, x in loss.items()}
        found["loss"] = whole, True
    rows = [
        f"| `{id_}` | {_shown(value)} | {files[own] or f'`{about.like}`'} |"
        for id_, (value, own) in found.items()
    ]
    return _PAGE.format(
        mark=MARK,
        title=f"{about.task} with {about.network}",
        images=about.images,
        values=about.values,
        recipe="\n".join(rows),
        ending=".nii.gz" if about.spatial_dims == 3 else ".png",
    )


def marked(files: Mapping[str, Path]) -> list[str]:
    """The lines that are left to fill in, as FILE:LINE.

    Args:
        files: by the names that they are called by.

    Raises:
        OSError: one cannot be read.
    """
    return [
        f"{name}:{number}"
        for name, file in files.items()
        if file.suffix in (".json", ".md", ".txt")
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), start=1)
        if MARK in line
    ]


def _shown(value: Any) -> str:
    """A value of a config; of a component which it is, and of what it wraps."""
    if not isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    target = f"`{str(value['_target_']).rpartition('.')[2]}`"
    wrapped = [_shown(x) for x in value.values() if isinstance(x, dict) and "_target_" in x]
    return " of ".join([target, *wrapped])


def _capital(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"
