"""The verbs on bundles."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import bundles, main
from common.data.phantom import write_phantom

from ..conftest import REPOSITORY
from ..zoo.conftest import NAME

TRAINING = {
    "max_epochs": 1,
    "val_interval": 1,
    "network_def#init_filters": 8,
    "network_def#blocks_down": "[1,1]",
    "network_def#blocks_up": "[1]",
    "image_size": "[64,64]",
    "epoch_length": 3,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["common", *words])
    main()
    return str(capsys.readouterr().out)


def refused(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["common", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return str(ended.value)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run, in place of running them."""
    commands: list[list[str]] = []
    monkeypatch.setattr(bundles, "_become", commands.append)
    return commands


def test_the_list_has_a_line_for_each_bundle(monkeypatch: pytest.MonkeyPatch, capsys):
    lines = said(monkeypatch, capsys, "list").splitlines()
    names = [file.parents[1].name for file in REPOSITORY.glob("bundles/*/configs/metadata.json")]
    assert lines[0].split() == ["bundle", "task", "version", "weights", "size", "released"]
    assert [line.split()[0] for line in lines[2:-3]] == sorted(names)
    (lung,) = (line for line in lines if line.startswith(NAME))
    assert "Lung segmentation in frontal chest X-rays" in lung


def test_the_list_says_what_cannot_be_read(elsewhere: Path, monkeypatch, capsys):
    (elsewhere / "broken/configs").mkdir(parents=True)
    (elsewhere / "broken/configs/metadata.json").write_text("{")
    lines = said(monkeypatch, capsys, "list").splitlines()
    assert lines[-1].startswith("broken cannot be read: ")
    assert "metadata.json cannot be read as JSON" in lines[-1]
    assert any(line.startswith(NAME) for line in lines)


def test_info_is_in_lines_of_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys):
    lines = said(monkeypatch, capsys, "info", NAME).splitlines()
    folder = f"folder:      {REPOSITORY / 'bundles' / NAME}"
    assert lines[0] == f"bundle:      {NAME}"
    assert lines[-1] == folder
    assert "classes:     0 background, 1 lung" in lines
    assert max(len(line) for line in lines if line != folder) <= 100
    assert sum("arXiv" in line for line in lines) == 2
    assert "the nearest is" in refused(monkeypatch, "info", NAME[:-4])


def test_train_prints_the_command_and_runs_it(elsewhere: Path, run, monkeypatch, capsys):
    words = ["--data", "my data", "--max_epochs", "3", "--network_def#init_filters", "8"]
    printed = said(monkeypatch, capsys, "train", NAME, *words, "--pretrained", "1e3", "--resume")
    ((python, *command),) = run
    assert shlex.split(printed) == [python, *command]
    assert python == sys.executable
    assert command == [
        *("-m", "monai.bundle", "run", "--config_file", f"{NAME}/configs/train.json"),
        *("--bundle_root", NAME, "--dataset_dir", "my data"),
        *("--max_epochs", "3", "--network_def#init_filters", "8", "--pretrained", "1e3"),
        *("--resume", "True"),
    ]


def test_train_says_what_it_cannot_do(elsewhere: Path, run, monkeypatch: pytest.MonkeyPatch):
    data = ["--data", "d"]
    message = refused(monkeypatch, "train", NAME, *data, "--max_epoch", "3")
    assert "sets max_epoch; " in message
    assert message.endswith("train.json has no max_epoch; the nearest is max_epochs.")
    assert "train needs --data; " in refused(monkeypatch, "train", NAME)
    assert "There is no bundle lungs, by its name" in refused(monkeypatch, "train", "lungs", *data)
    assert run == []
    assert list(elsewhere.iterdir()) == []


def test_verify_takes_a_name_a_folder_and_a_zip_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    seen = []

    def verify(path: str | Path) -> list[tuple[str, list[str]]]:
        seen.append(path)
        return [("metadata", [])]

    monkeypatch.setattr("common.zoo.verify", verify)
    (elsewhere / "a.zip").touch()  # is not unpacked before it is looked at
    for word in (NAME, str(elsewhere), "a.zip"):
        assert said(monkeypatch, capsys, "zoo", "verify", word) == "passed  metadata\n"
    assert seen == [REPOSITORY / "bundles" / NAME, str(elsewhere), "a.zip"]
    assert "the nearest is" in refused(monkeypatch, "zoo", "verify", NAME[:-4])


@pytest.mark.slow
def test_a_training_is_in_a_copy_and_goes_on(elsewhere: Path):
    write_phantom(elsewhere / "data", cases=10, seed=1, kind="cxr", size=96, progress=False)
    came_with = {x: x.stat().st_mtime_ns for x in (REPOSITORY / "bundles" / NAME).rglob("*")}

    def train(**more: object) -> subprocess.CompletedProcess[str]:
        options = [f"--{id_}={value}" for id_, value in {**TRAINING, **more}.items()]
        words = ["-W", "ignore", "-m", "common", "train", NAME, "--data", "data", *options]
        return subprocess.run([sys.executable, *words], capture_output=True, text=True)

    done = train()
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout.splitlines()[0])
    assert command[1:4] == ["-m", "monai.bundle", "run"]
    assert (elsewhere / NAME / "models/model.pt").is_file()
    assert (elsewhere / NAME / "eval/learning_curves.csv").is_file()
    assert {
        x: x.stat().st_mtime_ns for x in (REPOSITORY / "bundles" / NAME).rglob("*")
    } == came_with

    done = train(max_epochs=2, resume=True)
    assert done.returncode == 0, done.stderr
    rows = (elsewhere / NAME / "eval/learning_curves.csv").read_text().splitlines()
    assert len(rows) == 3
    done = train(image_size=5)
    assert done.returncode == 1
    assert [x for x in done.stderr.splitlines() if x.startswith("error: image_size is 5; allowed")]


def test_download_takes_the_index_of_the_current_folder(elsewhere: Path, monkeypatch):
    """What the collection's own index says is not in it, as nothing of it is released by a test."""
    given: list[tuple] = []
    monkeypatch.setattr("common.zoo.install", lambda *words: given.append(words))
    monkeypatch.setattr(sys, "argv", ["common", "download", NAME, "--version", "0.1.0"])
    main()
    monkeypatch.setattr(sys, "argv", ["common", "zoo", "install", NAME, "--index", "i.json"])
    main()
    assert given == [(NAME, "0.1.0", None, ".", False), (NAME, None, "i.json", ".", False)]
    monkeypatch.undo()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "model_zoo_index.json").write_text(json.dumps({}))
    message = refused(monkeypatch, "download", NAME)
    assert message == f"error: model_zoo_index.json has no bundle {NAME}; allowed are none."
