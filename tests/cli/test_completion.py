"""Completion, as bash and zsh ask for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from common.cli import VERBS
from common.cli.completion import script
from common.collection import known_bundles

BUNDLES = list(known_bundles())


def completed(tmp_path: Path, shell: str, words: list[str]) -> list[str]:
    """What a shell is told of the last of these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "completion").write_text(script(VERBS))
    # zsh gives COMP_WORDS as bash does, from 0, where its completion runs.
    arrays = "setopt ksharrays; " if shell == "zsh" else ""
    program = (
        f'. "{tmp_path}/completion"; {arrays}COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_common_words; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    options = ["--norc"] if shell == "bash" else ["-f"]
    done = subprocess.run(
        [shell, *options, "-c", program, shell, "common", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["che"], ["check"]),
        (["zo"], ["zoo"]),
        (["new"], ["new-bundle"]),
        (["new-bundle", "a", "--cl"], ["--classes"]),
        (["zoo", "p"], ["pack", "push"]),
        (["zoo", "install", "--ver"], ["--version"]),
        (["check", "--data"], ["--dataset_dir"]),
        (["check", "--dataset_dir", "some/folder", "--out"], ["--output"]),
        (["check", "--dataset_dir", ""], []),  # a file, which the shell completes
        (["download", "a", "--overwrite", ""], ["True", "False"]),
        (["train", "lung"], ["lung_cxr_lightm_unet_segmentation"]),
        (["plan", "--bundle", "lung"], ["lung_cxr_lightm_unet_segmentation"]),
        (["zoo", "pack", ""], [*BUNDLES, "--output", "--help"]),
        (["paint", ""], []),
    ],
    ids=lambda words: " ".join(words),
)
def test_words(tmp_path: Path, shell: str, words: list[str], expected: list[str]):
    assert completed(tmp_path, shell, words) == expected


def test_every_verb_is_completed(tmp_path: Path):
    found = completed(tmp_path, "bash", [""])
    assert found == list(
        dict.fromkeys(name.split()[0] for group in VERBS.values() for name in group)
    )


def test_the_command_is_this_pythons(tmp_path: Path):
    (tmp_path / "completion").write_text(script(VERBS))
    program = f'. "{tmp_path}/completion"; common check'
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True)
    assert done.stderr.startswith("error: check needs --dataset_dir; ")
    assert done.returncode == 1


def test_a_folder_whose_name_the_shell_would_run_is_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "$(touch ran)/configs").mkdir(parents=True)
    (tmp_path / "$(touch ran)/configs/metadata.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert "$(touch ran)" in known_bundles()
    assert "touch" not in script(VERBS)
