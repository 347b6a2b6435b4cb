"""The commands of README.md, CONTRIBUTING.md and docs/*.md are run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from common.cli import VERBS
from common.cli.words import asks_for_help, check_words, find_verb
from common.errors import InputError
from common.zoo.contract import config

from .conftest import REPOSITORY
from .documented import LIVER, Command, Workplace, can_run, commands, make_template, shell_lines
from .test_docs import NAMES, read

WALK = "CONTRIBUTING.md"
PAGES = [name for name in NAMES if re.fullmatch(r"README\.md|CONTRIBUTING\.md|docs/[^/]+", name)]
_SERVED = "nothing is released yet; tests/zoo/test_install.py downloads from a server of its own"
# What is not run: page, command, and why; * is anything.
NOT_RUN = [
    ("*", "pip install *", "it asks a package index"),
    ("*", "make *", "it makes an environment, in which it runs these tests, or trains for minutes"),
    ("*", "python -m benchmarks.*", "it takes minutes or more; tests/test_benchmarks.py"),
    ("*", "nnUNetv2_*", "nnU-Net trains for hours; tests/nnunet/test_trainers.py"),
    ("README.md", "python -m common export *", "minutes; tests/workflows/test_export.py"),
    ("docs/bundles.md", "python -m common download *", _SERVED),
    ("docs/comparing.md", "python -m common profile *", "minutes; tests/workflows/test_costs.py"),
    ("docs/huggingface.md", "python -m common zoo push * --dry_run False", "it uploads"),
    ("docs/huggingface.md", "python -m monai.bundle download *", "it asks the Hub"),
    (
        "docs/mlflow.md",
        "* --tracking mlflow *",
        "tests/test_mlflow.py, where MLflow reports nothing",
    ),
    ("docs/mlflow.md", "import mlflow*", "it reads what those have written; tests/test_mlflow.py"),
    ("docs/mlflow.md", "mlflow *", "a server, which does not end"),
    ("docs/model_zoo.md", "python -m common zoo install *", _SERVED),
    ("docs/model_zoo.md", "python -m monai.bundle download *", _SERVED),
    ("docs/model_zoo.md", "import monai*", _SERVED),
    ("docs/monai_deploy.md", "python docs/build_deploy_app.py *", "tests/test_deploy.py"),
    ("docs/monai_deploy.md", "python -m venv deploy", "MONAI Deploy's own environment"),
    ("docs/monai_deploy.md", "deploy/bin/*", "MONAI Deploy's own environment"),
    ("docs/monai_deploy.md", "grep * | deploy/bin/pip *", "MONAI Deploy's own environment"),
    ("docs/monai_deploy.md", "export LD_LIBRARY_PATH=*", "MONAI Deploy's own environment"),
    ("docs/monai_deploy.md", "ulimit -s 32768", "MONAI Deploy's own environment"),
    ("docs/monai_label.md", "python -m venv label *", "MONAI Label's; tests/test_monai_label.py"),
    ("docs/monai_label.md", "monailabel *", "MONAI Label's; tests/test_monai_label.py"),
    ("docs/monai_label.md", "mkdir -p monaibundle/model", "in what monailabel downloads"),
    ("docs/monai_label.md", "cp -r bundles/* monaibundle/model", "in what monailabel downloads"),
    ("docs/monai_label.md", "curl *", "it asks MONAI Label's server; tests/test_monai_label.py"),
    ("docs/multi_gpu.md", "torchrun *", "two GPUs, or two machines; tests/test_distributed.py"),
    ("docs/nnunet.md", "python -m common convert *", "of nnU-Net; tests/workflows/test_nnunet.py"),
    (
        "docs/regions.md",
        "python -m monai.bundle run *",
        "MR of tumours; tests/test_label_options.py",
    ),
    ("docs/reliability.md", "srun *", "Slurm's"),
    ("docs/reliability.md", "*scontrol*", "Slurm's"),
    ("docs/reliability.md", "FAULT_MOMENTS=20 *", "hours; make test-slow tries three moments"),
    ("docs/results.md", "for m in *", "of what hours of training left"),
    ("docs/results.md", "python -m common compare *", "of what hours of training left"),
    ("docs/results.md", "python -m monai.bundle run *", "an hour, or data that is not here"),
    ("docs/segment.md", "* --engine ray *", "a cluster; tests/workflows/segmentation"),
    ("docs/slicer.md", "slicer.util.*", "it is run in 3D Slicer"),
    ("docs/slicer.md", "from monai.bundle *", "in 3D Slicer; tests/test_bundle_runs.py"),
    ("docs/studies.md", "* study lungs.json * --output out", "15 trainings; tests/workflows/study"),
    ("docs/studies.md", "* study studies/*", "hours of training; tests/workflows/study"),
    ("docs/studies.md", "less *", "it waits for a reader"),
    ("docs/studies.md", "open *", "a desktop's"),
    ("docs/studies.md", "ray start --head", "a cluster; tests/workflows/study/test_engines.py"),
    ("docs/studies.md", "* --engine ray *", "a cluster; tests/workflows/study/test_engines.py"),
]
# What stands in commands for a path of the reader's, and what it is where they are run.
PATHS = {
    **dict.fromkeys(("/your/data", "/data/Task03_Liver", "/tmp/phantom", "DIR"), "data"),
    "/data/lungs": "lungs",
    "/results": "results",
}
# By page: what is given otherwise, so that it takes seconds.
OTHERWISE = {
    "docs/bundles.md": {"--max_epochs 200": "--max_epochs 1"},
    "docs/planning.md": {"bundles/NAME": f"bundles/{LIVER}"},
}
# By page and heading: the scan that scan.nii.gz is there, if it is not a CT.
SCANS = {("README.md", "Segment a hippocampus or a chest X-ray in a minute"): "mr/imagesTs"}
GOES_ON = ("docs/mlflow.md",)  # pages whose sections begin in the folder that the last one was in
# By page: some of what is there in the end.
LEFT = {
    "README.md": [
        *(f"out/scan/{name}" for name in ("scan.nii.gz", "preview.png", "statistics.json")),
        *(f"out/chest/{name}" for name in ("chest.png", "preview.png", "statistics.json")),
        *(f"{LIVER}/models/model.pt", "eval/scan_seg.nii.gz", "look.png", "look.html"),
    ],
    "docs/bundles.md": [f"{LIVER}/models/model.pt", f"{LIVER}/eval/learning_curves.csv"],
    "docs/comparing.md": ["results/unetr/models/model.pt", "results/unetr/eval/scan_seg.nii.gz"],
    "docs/data.md": ["report.csv"],
    "docs/evaluation.md": ["results/cases.csv", "results/lesions.csv", "results/summary.json"],
    "docs/fine_tuning.md": ["earlier.json"],
    "docs/model_zoo.md": [f"dist/{LIVER}_v0.1.0.zip", "model_zoo_index.json"],
    "docs/planning.md": [f"bundles/{LIVER}/plan.json"],
    "docs/segment.md": ["out/scan/preview.png", "out/scan/manifest.json"],
    "docs/viewing.md": ["out/scan/view.html", "look.png", "look.html"],
}


def matching(command: Command) -> list[tuple[str, str, str]]:
    """The entries of `NOT_RUN` that a command is of."""
    return [
        entry
        for entry in NOT_RUN
        if fnmatchcase(command.page, entry[0]) and fnmatchcase(command.text, entry[1])
    ]


COMMANDS = {page: commands(page) for page in PAGES}
TO_RUN = {page: [x for x in found if not matching(x)] for page, found in COMMANDS.items()}


def test_commands_are_seen():
    found = [x.text for x in COMMANDS["README.md"]]
    assert found[:4] == [
        *("make demo", "make test", "pip install -c constraints.txt .", "python -m common list"),
    ]
    assert "python -m common doctor" in found, "of a block without a blank line before it"
    (walk,) = (x for x in COMMANDS[WALK] if x.module == "common" and "new-bundle" in x.text)
    assert walk.heading == "A bundle in an afternoon"
    (check,) = (x for x in COMMANDS["docs/studies.md"] if " check " in x.text)
    assert check.text == "python -m common check --dataset_dir /data/lungs"
    (loop,) = (x for x in COMMANDS["docs/results.md"] if x.text.startswith("for "))
    assert loop.text.splitlines()[-1] == "done"
    (convert,) = (x for x in COMMANDS["docs/nnunet.md"] if " convert " in x.text)
    assert "Dataset004_Liver/LightMUNetTrainer__nnUNetPlans__3d_fullres/fold_0" in convert.text


def test_lines_of_a_shell():
    text = "# a\npip  install x    # b\na --b '#c' \\\n    d\nx#y\n\nfor i in 1; do\n    z\ndone\n"
    assert list(shell_lines(text)) == [
        *("pip install x", "a --b '#c' d", "x#y", "for i in 1; do\nz\ndone"),
    ]


def test_what_is_not_run_has_a_reason_that_is_needed():
    """And no command has two."""
    entries = [found for page in PAGES for x in COMMANDS[page] if (found := matching(x))]
    assert [found for found in entries if len(found) > 1] == []
    used = {found[0] for found in entries}
    assert [entry for entry in NOT_RUN if entry not in used] == []
    assert all(reason for *_, reason in NOT_RUN)


@pytest.mark.parametrize("page", [page for page in PAGES if TO_RUN[page]])
def test_what_commands_begin_with_is_there(page: str):
    assert [x.text for x in TO_RUN[page] if not can_run(x)] == []


VERB = re.compile(r"\$\(python -m common ([^)]+)\)|python -m common (.+)")
EVERY: dict[str, Callable[..., None]] = {
    name: verb for group in VERBS.values() for name, verb in group.items()
}


@pytest.mark.parametrize("page", [name for name in NAMES if name != "CHANGELOG.md"])
def test_verbs_and_options_are_there(page: str):
    """Also of commands that are not run, and of those within sentences, which may lack some."""
    html = read(REPOSITORY / page)
    said = [x for x in html.inline if x.startswith("python -m common ")]
    said += [
        line for x in html.blocks if x.language in ("", "bash") for line in shell_lines(x.text)
    ]
    lines = [found[1] or found[2] for text in said if (found := VERB.search(text))]
    assert [(line, problem(line)) for line in lines if problem(line)] == []


def problem(line: str) -> str:
    """What the command line says of words, but that some are lacking; empty if nothing."""
    words = ["--output" if word == "-o" else word for word in shlex.split(line)]
    if words[0] == "VERB" or asks_for_help(words):
        return ""
    try:
        name = find_verb(list(EVERY), words)
        if name is not None:
            check_words(name, EVERY[name], words[len(name.split()) :])
    except InputError as error:
        return "" if " needs " in str(error) else str(error)
    return ""


def test_problems_of_words_are_seen():
    for line in ("chek --dataset_dir a", "check --dataset a", "info a b c"):
        assert problem(line), line
    for line in ("VERB --help", "check", "zoo", "train NAME --data DIR --max_epochs 3"):
        assert not problem(line), line


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("documented"))


def run_page(page: str, template: Path, folder: Path) -> tuple[Workplace, dict[str, str]]:
    """Run a page's commands in a folder of their own; what each has said."""
    place = Workplace(template, folder, PATHS)
    heading, said = "", {}
    for command in TO_RUN[page]:
        if command.heading != heading:
            heading = command.heading
            if page not in GOES_ON:
                place.home()
            images = place.folder / SCANS.get((page, heading), "data/imagesTs")
            shutil.copy(next(images.iterdir()), place.folder / "scan.nii.gz")
        said[command.text] = place.run(command, OTHERWISE.get(page, {}))
    return place, said


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if TO_RUN[page] and page != WALK])
def test_commands_of(page: str, template: Path, tmp_path: Path):
    place, _ = run_page(page, template, tmp_path)
    left = LEFT.get(page, [])
    assert [name for name in left if not (place.folder / name).is_file()] == []


@pytest.mark.slow
def test_a_bundle_in_an_afternoon(template: Path, tmp_path: Path):
    """CONTRIBUTING.md's walk: what it makes is trained, evaluated, used and sound."""
    place, said = run_page(WALK, template, tmp_path)
    name = "liver_ct_segresnet_segmentation"
    bundle = place.folder / "bundles" / name
    assert config(bundle, "train")["network_def"]["_target_"] == "SegResNet"
    made, verified = (next(said[x] for x in said if word in x) for word in ("new-bundle", "verify"))
    assert "to fill in: docs/README.md:" in made
    assert {line.split()[0] for line in verified.splitlines()} == {"passed"}
    header, *rows = (bundle / "eval/cases.csv").read_text().splitlines()
    assert [row.split(",")[header.split(",").index("name")] for row in rows] == ["liver", "tumour"]
    assert len(list((bundle / "eval").glob("*_seg.nii.gz"))) == 1
    assert (bundle / "models/model.pt").is_file()
