"""nnU-Net's trainer, and LightM-UNet's inside it, for `benchmarks.yardstick`: they end by time.

nnU-Net finds them where nnUNet_extTrainer names this folder. YARDSTICK_SECONDS is the time for
training, from the first iteration on; the learning rate's polynomial decay is stretched to it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from common.nnunet.trainers import LightMUNetTrainer


class _Timed(nnUNetTrainer):
    """Trains until the time is up, in the epochs of nnU-Net's trainer, the last one cut short.

    What is measured on the fold in every epoch chooses nothing: it is one iteration instead of 50.
    """

    def run_training(self) -> None:
        self.num_val_iterations_per_epoch = 1
        self.num_epochs = 1_000_000  # of the schedules that are set aside here
        self.on_train_start()
        seconds = float(os.environ["YARDSTICK_SECONDS"])
        start = time.monotonic()
        iterations = 0
        while (passed := time.monotonic() - start) < seconds:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses: list[dict[str, Any]] = []
            while passed < seconds and len(losses) < self.num_iterations_per_epoch:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - passed / seconds) ** 0.9
                losses.append(self.train_step(next(self.dataloader_train)))
                passed = time.monotonic() - start
            iterations += len(losses)
            self.on_train_epoch_end(losses)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
        told = {
            "seconds": round(time.monotonic() - start, 1),
            "iterations": iterations,
            "batch_size": self.batch_size,
        }
        Path(self.output_folder, "yardstick.json").write_text(json.dumps(told))
        self.on_train_end()


class TimedNNUNetTrainer(_Timed):
    """nnU-Net's own network and recipe."""


class TimedLightMUNetTrainer(_Timed, LightMUNetTrainer):
    """LightM-UNet and its released recipe."""
