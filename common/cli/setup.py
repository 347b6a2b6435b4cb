"""Before a training: the networks, this machine, and a plan for a data set."""

from __future__ import annotations

import sys
from typing import Any

from .output import say, table


def networks() -> None:
    """Print the collection's networks: cost, paper, licence of the code, known complaints.

    docs/networks.md has the same table, and how its figures are measured.
    """
    from ..workflows import catalogue_rows, not_measured, read_catalogue

    catalogue = read_catalogue()
    header, *rows = catalogue_rows(catalogue)
    say(table(header[:-1], [row[:-1] for row in rows]))
    say()
    for machine in catalogue.machines or ["no machine yet"]:
        say(f"seconds and GiB: of {machine}")
    for sentence in not_measured(catalogue):
        say(f"not measured: {sentence}")
    say()
    say("Known complaints; numbers are issues of the released code:")
    for entry in catalogue.entries.values():
        if entry.complaints:
            say(f"{entry.title}: {entry.complaints}")


def doctor() -> None:
    """Say which backend runs the scan where, why, how fast, and whether it is right."""
    from ..doctor import SelfTestError, examine

    try:
        for line in examine():
            say(line)
    except SelfTestError as error:
        sys.exit(f"error: {error}")


def plan(
    bundle: str, dataset_dir: str, output: str, gpu_memory: float = 8.0, **overrides: Any
) -> None:
    """Let nnU-Net plan a training: spacing, patches, batch, intensities (extra: plan).

    The cases are those that training would train on. The output goes after the bundle's own config,
    in training alone, as the weights keep it:
    --config_file "['configs/train.json','configs/plan.json']"

    Input:
        bundle: the bundle, by its name, folder or zip file.
        dataset_dir: the data set: a folder in any of the layouts of docs/data.md.
    Output:
        output: a JSON file for the plan.
    Training:
        gpu_memory: GB that nnU-Net's own U-Net may fill.
        overrides: what training will be given as well, such as --fold 0 or --modality MR.
    """
    from ..workflows import write_plan
    from ..zoo import find_bundle

    planned = write_plan(find_bundle(bundle), dataset_dir, output, gpu_memory, **overrides)
    for key, value in planned.overrides.items():
        say(f"{key}: {value}")
    say(f"cases: {planned.cases} of {planned.of}, those for training")
    say(f"plan: {output}")


def nnunet() -> None:
    """Print the folder of nnU-Net's trainers for our networks (extra: plan).

    export nnUNet_extTrainer=$(python -m common nnunet), then nnUNetv2_train 4 3d_fullres 0 -tr
    LightMUNetTrainer. docs/nnunet.md lists the trainers.
    """
    from ..nnunet import trainers_folder

    say(str(trainers_folder()))
