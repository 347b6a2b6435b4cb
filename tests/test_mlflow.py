"""Runs of the bundles, read back from MLflow's local store as docs/mlflow.md has them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.phantom import write_phantom

from . import running
from .running import FRESH, succeed
from .test_bundle_runs import BUNDLE, SMALL

pytestmark = pytest.mark.slow

command = partial(running.command, BUNDLE)


def finished_runs(store: Path) -> dict[str, tuple[Any, Any]]:
    """MLflow's client, and the runs that finished, by name."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("liver")
    runs = client.search_runs(experiment.experiment_id)
    return {run.info.run_name: (client, run) for run in runs if run.info.status == "FINISHED"}


def test_training_and_inference_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow", reason="needs the extra: mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = write_phantom(tmp_path / "data", cases=4, seed=1, size=40)
    options = {"bundle_root": tmp_path, "dataset_dir": data, "experiment_name": "liver", **SMALL}
    succeed(
        command(
            "train",
            **options,
            max_epochs=2,
            val_interval=1,
            split=[2, 1, 1],
            batch_size=1,
            tracking="mlflow",
            run_name="training",
        ),
        launcher=FRESH,  # in this environment
    )
    config = tmp_path / "eval/inference_run.json"
    succeed(
        command(
            "inference",
            **options,
            output_dir=tmp_path / "eval",
            tracking="mlflow",
            run_name="inference",
            save_execute_config=config,
        ),
        launcher=FRESH,
    )
    assert (tmp_path / "models/model.pt").is_file()

    runs = finished_runs(tmp_path / "eval/mlruns.db")
    assert set(runs) == {"training", "inference"}
    client, training = runs["training"]
    assert training.data.params == {"max_epochs": "2", "epoch_length": "2"}
    names = {"train_loss", "lr_group_0", "train_mean_dice", "val_mean_dice", "val_dice_class_1"}
    assert names <= set(training.data.metrics)

    def history(name: str) -> list[tuple[int, float]]:
        values = client.get_metric_history(training.info.run_id, name)
        return [(value.step, value.value) for value in values]

    assert [step for step, _ in history("train_loss")] == [1, 2, 3, 4]
    assert all(torch.tensor(loss).isfinite() for _, loss in history("train_loss"))
    assert [step for step, _ in history("val_mean_dice")] == [1, 2]

    for _, run in runs.values():  # the configuration as it was run
        (artifact,) = client.list_artifacts(run.info.run_id)
        file = client.download_artifacts(run.info.run_id, artifact.path)
        assert json.loads(Path(file).read_text())["network_def"]["init_filters"] == 8
