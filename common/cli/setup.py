"""Before a training: this machine, and a plan for a data set."""

from __future__ import annotations

import sys

from .output import say


def doctor() -> None:
    """Say which backend runs the selective scan where, why, how fast, and whether it is right."""
    from ..doctor import SelfTestError, examine

    try:
        for line in examine():
            say(line)
    except SelfTestError as error:
        sys.exit(f"error: {error}")


def plan(
    dataset_dir: str, output: str, gpu_memory: float = 8.0, modality: str | None = None
) -> None:
    """Let nnU-Net plan spacing, patches, stages and intensities for a data set (extra: plan).

    The output goes after the other configs, in training and in inference:
    --config_file "['configs/train.json','configs/plan.json']"
    """
    from ..workflows import write_plan

    for key, value in write_plan(dataset_dir, output, gpu_memory, modality).items():
        say(f"{key}: {value}")
    say(f"plan: {output}")


def nnunet() -> None:
    """Print the folder of nnU-Net's trainers for our networks, for nnUNet_extTrainer (extra: plan).

    export nnUNet_extTrainer=$(python -m common nnunet), then nnUNetv2_train 4 3d_fullres 0 -tr
    LightMUNetTrainer. docs/nnunet.md lists the trainers.
    """
    from ..nnunet import trainers_folder

    say(str(trainers_folder()))
