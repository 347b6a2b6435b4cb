"""Two ranks of a training, on gloo, do what one does with their global batch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.losses import DeepSupervisionLoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from common.blocks import BatchNorm2d, Codebook
from common.data import ValidationSampler, split_cases
from common.data.phantom import write_phantom
from common.distributed import end_process_group, synchronized
from common.evaluation import CasesSaver, MeanDice, OverlapMetric, PerClassMetric
from common.ignored import IGNORED
from common.losses import (
    BoundaryAwareBCEDiceLoss,
    CodebookMambaLoss,
    DiceBCELoss,
    DiceCELoss,
    DiceCERegionTverskyLoss,
    HybridLoss,
    RegionSpecificTverskyLoss,
)
from common.networks import CodebookMambaUNet, ELANResMSCAUNet, LiverTumourCascade

from . import preloaded, running
from .conftest import REPOSITORY

RANKS = 2
SAMPLES = 4  # of a global batch


class Training(NamedTuple):
    """What is trained; in float64, so that a difference is one of meaning, not of rounding.

    Attributes:
        network: makes it, for images (b, 1, ...).
        loss: of its output and a target, to a scalar.
        size: of an image.
        classes: of a target's one channel; or None for two channels, a liver and its tumours.
        ignored: whether one sample of the first rank has no label at all, and one a part of it.
    """

    network: Callable[[], nn.Module]
    loss: Callable[..., Any]
    size: tuple[int, ...] = (8, 6)
    classes: int | None = 3
    ignored: bool = False
    steps: int = 10


def convolution(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(1, channels, 3, padding=1)


def of_ranks(loss: nn.Module, channels: int = 3, **options: Any) -> Training:
    return Training(convolution(channels), loss, **options)


class Normed(nn.Sequential):
    """Batch norms of ours and of torch's, of maps in both layouts."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.BatchNorm2d(3, momentum=0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class OtherwiseNormed(nn.Sequential):
    """Batch norms with all that torch's may do without."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4, momentum=None),
            nn.ReLU(),
            nn.BatchNorm2d(4, affine=False),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.BatchNorm2d(3, momentum=None, affine=False, track_running_stats=False),
        )


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 3, 3, padding=1)
        self.codebook = Codebook(6, 3, init="data", restart_after=2)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        quantised, loss, _ = self.codebook(self.entry(x))
        return self.head(quantised), loss


def cascade() -> nn.Module:
    networks = (ELANResMSCAUNet(1, 1, widths=[2, 2, 4, 4, 4]) for _ in range(2))
    return LiverTumourCascade(*networks, stage="liver")


def codebook_unet() -> nn.Module:
    small = {"widths": [2, 4, 4, 4], "prototype_dim": 4, "num_prototypes": 8}
    drawn = {"codebook_init": "data", "restart_after": 2}
    return CodebookMambaUNet(1, **small, **drawn, mixer="identity")  # slow in float64


CLASSES = {"to_onehot_y": True, "softmax": True}
WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
LOSSES = {
    "dice_ce": of_ranks(DiceCELoss(**CLASSES)),
    "dice_ce_batch": of_ranks(DiceCELoss(**CLASSES, batch=True)),
    "dice_ce_weighted": of_ranks(DiceCELoss(**CLASSES, batch=True, weight=WEIGHTS)),
    "dice_ce_squared": of_ranks(DiceCELoss(**CLASSES, batch=True, squared_pred=True)),
    "dice_ce_jaccard": of_ranks(
        DiceCELoss(**CLASSES, batch=True, jaccard=True, include_background=False)
    ),
    "dice_ce_sum": of_ranks(DiceCELoss(**CLASSES, reduction="sum", lambda_ce=0.01)),
    "dice_ce_batch_sum": of_ranks(
        DiceCELoss(**CLASSES, batch=True, reduction="sum", lambda_ce=0.01)
    ),
    "dice_bce_one": of_ranks(DiceCELoss(sigmoid=True, batch=True), 1, classes=2),
    "dice_bce": of_ranks(DiceBCELoss(), 2, classes=None),
    "dice_bce_batch": of_ranks(DiceBCELoss(batch=True), 2, classes=None),
    "codebook": of_ranks(CodebookMambaLoss(), 2, classes=None),
    "hybrid_dice": of_ranks(HybridLoss("dice_bce")),
    "hybrid_tversky": of_ranks(HybridLoss("tversky_bce")),
    "hybrid_one": of_ranks(HybridLoss("tversky_bce"), 1, classes=2),
    "boundary": of_ranks(BoundaryAwareBCEDiceLoss()),
    "boundary_one": of_ranks(BoundaryAwareBCEDiceLoss(), 1, classes=2),
    "tversky": of_ranks(RegionSpecificTverskyLoss(2, batch=False)),
    "region": of_ranks(DiceCERegionTverskyLoss(2)),
}
TRAININGS = (
    LOSSES
    | {f"{name}_ignored": case._replace(ignored=True) for name, case in LOSSES.items()}
    | {
        "norms": Training(Normed, HybridLoss()),
        "other_norms": Training(OtherwiseNormed, HybridLoss()),
        "prototypes": Training(Quantised, CodebookMambaLoss(), classes=None),
        "elanres": Training(
            cascade, DeepSupervisionLoss(HybridLoss()), size=(16, 16, 16), classes=2, steps=4
        ),
        "codebook_unet": Training(
            codebook_unet, CodebookMambaLoss(), size=(16, 16, 16), classes=None, steps=4
        ),
    }
)


def data(case: Training) -> tuple[Tensor, Tensor]:
    """The global batch: a class is rarer in some samples, and lacks in one of each rank."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 1, *case.size, generator=source, dtype=torch.float64)
    if case.classes is None:
        liver = (x > 0).double()
        target = torch.cat([liver, liver * (x > 1)], 1)
    else:
        target = torch.bucketize(x, torch.tensor([0.0, 1.2][: case.classes - 1])).double()
        target[2:] = target[2:].clamp(max=1)
    if case.ignored:
        target[0] = IGNORED
        target[2, :, :3] = IGNORED
    return x, target


def train(case: Training, rank: int = 0, ranks: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of each step, and the weights after them."""
    torch.manual_seed(0)
    network: nn.Module = case.network().double()
    torch.manual_seed(rank)
    module = synchronized(network)
    if ranks > 1:
        network = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], 0.02, momentum=0.9
    )
    x, target = (tensor[rank::ranks] for tensor in data(case))  # as a DistributedSampler deals
    losses = []
    for _ in range(case.steps):
        loss = case.loss(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, module.state_dict()


def metrics(rank: int = 0, ranks: int = 1) -> list[dict[str, float]]:
    """Of seven cases in an uneven split, one without the last class, several times."""
    source = torch.Generator().manual_seed(2)
    found = []
    for _ in range(20):
        label, pred = torch.randint(0, 2, (2, 7, 2, 7, 5), generator=source).float()
        label[3, 1] = 0
        cases = ValidationSampler(range(len(label)), ranks, rank)
        with TemporaryDirectory() as folder:
            found.append(metrics_of(label, pred, list(cases), folder))
    return found


def metrics_of(label: Tensor, pred: Tensor, cases: list[int], folder: str) -> dict[str, float]:
    def output(engine: Engine, case: int) -> list[dict[str, Tensor]]:
        image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": f"{case}.nii.gz"})
        return [{"pred": pred[case], "label": MetaTensor(label[case]), "image": image}]

    engine = Engine(output)
    pair = from_engine(["pred", "label"])
    PerClassMetric(OverlapMetric("dice"), pair).attach(engine, "dice")
    MeanDice(output_transform=pair).attach(engine, "mean")
    CasesSaver(folder, num_classes=3).attach(engine)
    return engine.run(cases).metrics


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=RANKS)
    results: dict[str, Any] = {"metrics": metrics(rank, RANKS)}
    for name, case in TRAININGS.items():
        results[name] = train(case, rank, RANKS)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    network = DistributedDataParallel(nn.Linear(1, 1))
    end_process_group(network)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has of every training, and the metrics."""
    folder = tmp_path_factory.mktemp("ranks")
    preloaded.server()
    start_processes(rank_of_two, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_train_as_one(name: str, two: list[dict[str, Any]]):
    losses, weights = train(TRAININGS[name])
    assert losses[-1] < losses[0]
    for rank in range(RANKS):
        its_losses, its_weights = two[rank][name]
        assert its_losses == pytest.approx(losses, abs=1e-6)
        assert its_weights.keys() == weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(its_weights[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_batch_norms_on_cuda_are_torchs(monkeypatch: pytest.MonkeyPatch):
    """In the weight's precision; with a GPU that is only said to be there, so without a group."""
    network = Normed()
    expected, names = network(torch.ones(2, 1, 4, 4)), list(network.state_dict())
    monkeypatch.setattr(network, "parameters", lambda: iter([SimpleNamespace(is_cuda=True)]))
    converted = synchronized(network)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted) == 2
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(torch.ones(2, 1, 4, 4)), expected)
    assert converted[1](torch.ones(2, 4, 3, 3).half()).dtype == torch.float32
    others = OtherwiseNormed()
    monkeypatch.setattr(others, "parameters", lambda: iter([SimpleNamespace(is_cuda=True)]))
    assert synchronized(others)(torch.ones(2, 1, 4, 4)).shape == (2, 3, 4, 4)


def test_metrics_of_an_uneven_split(two: list[dict[str, Any]]):
    for rank in range(RANKS):
        assert two[rank]["metrics"] == metrics()


def torchrun(*program: str, ranks: int = RANKS) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, *program]


FAILING = """
import os, signal, time
import torch
import torch.distributed as dist
from common.errors import InputError, explain_input_errors

explain_input_errors()
dist.init_process_group("gloo")
for step in range(1000):
    if dist.get_rank() == 1 and step == 3:
        {end}
    {other}
"""


@pytest.mark.parametrize(
    ("end", "other", "said"),
    [
        ("raise InputError('A is B.')", "dist.all_reduce(torch.ones(1))", "error: A is B."),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "dist.all_reduce(torch.ones(1))",
            "Signal 9 (SIGKILL) received",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "raise InputError('A is B.')", "time.sleep(1)", "error: A is B.", marks=pytest.mark.slow
        ),
    ],
)
def test_one_rank_ends_the_job(end: str, other: str, said: str, tmp_path: Path):
    """Whether the other one waits for it or works on; and torchrun's last lines say why."""
    program = tmp_path / "program.py"
    program.write_text(FAILING.format(end=end, other=other))
    run = [sys.executable, "-W", "ignore", *torchrun(str(program))]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert said in last_lines(done.stderr)


def last_lines(stderr: str) -> str:
    """What torchrun says of the ranks that failed."""
    return stderr.split("ChildFailedError:")[1]


LIVER = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
# With batch norms, and less sensitive to rounding than the bundle's own, whose gradients change
# thousands of times as much as its weights, in float64 too.
SEGRESNET = {"_target_": "SegResNet", "in_channels": 1, "out_channels": "@num_classes"}
SEGRESNET |= {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "norm": "BATCH"}
SIZES = {"spacing": [6, 6, 8], "patch_size": [32, 32, 16], "learning_rate": 0.001}
RUN: dict[str, Any] = SIZES | {"network_def": SEGRESNET, "val_interval": 10, "epoch_length": 2}


# With crops at the centre, and without augmentation.
CROP = {"_target_": "CenterSpatialCropd", "keys": ["image", "label"], "roi_size": "@patch_size"}
NOTHING_RANDOM = {"augmentation": "none", "augmentations#none#transforms": [CROP]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=7, seed=1, size=48)


@pytest.mark.slow
def test_loss_curve_of_a_bundle(dataset: Path, tmp_path: Path):
    """20 steps; and, of the first, the metrics of three cases, two of them the first rank's."""
    curves = []
    options = RUN | NOTHING_RANDOM
    options |= {"max_epochs": 10, "split": [4, 3, 0], "device": "cpu"}
    for ranks in (1, 2):
        root = tmp_path / str(ranks)
        where = {"bundle_root": root, "dataset_dir": dataset, "batch_size": 2 // ranks}
        arguments = running.command(LIVER, ["train", "multi_gpu_train"], **where, **options)
        running.succeed(arguments, launcher=torchrun("-m", ranks=ranks))
        curves.append(scalars(root / "eval"))
    one, two = curves
    assert len(one["train_loss"]) == 20
    assert one["train_loss"][-1] < one["train_loss"][0]
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    assert one.keys() == two.keys()
    assert "val_mean_dice" in one
    for name in one.keys() - {"train_loss"}:
        assert two[name] == pytest.approx(one[name], abs=1e-3), name
    first, second = (
        torch.load(tmp_path / f"{n}/models/model.pt", weights_only=True) for n in (1, 2)
    )
    assert first.keys() == second.keys()


def scalars(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for file in folder.glob("events*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found[name] = [event.value for event in events.Scalars(name)]
    return found


@pytest.mark.slow
def test_file_that_one_rank_cannot_read_ends_the_job(dataset: Path, tmp_path: Path):
    shutil.copytree(dataset, tmp_path / "data")
    split = [4, 2, 1]
    case = split_cases(tmp_path / "data", "training", ratios=split)[0]
    image = Path(case["image"])
    image.write_bytes(image.read_bytes()[:20_000])
    where = {"bundle_root": tmp_path, "dataset_dir": tmp_path / "data", "split": split}
    options = where | RUN | {"batch_size": 1, "cache_num": 0, "max_epochs": 1}
    arguments = running.command(LIVER, ["train", "multi_gpu_train"], device="cpu", **options)
    done = running.run(arguments, launcher=torchrun("-m"))
    assert done.returncode == 1
    assert f"error: The image {image} cannot be read" in last_lines(done.stderr)


CONFIGS = LIVER / "configs"
PROGRAM = """
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

def threads():
    names = [task / "comm" for task in Path("/proc/self/task").iterdir()]
    return sum("gloo_runloop" in name.read_text() for name in names)

parser = ConfigParser()
parser.read_config(sys.argv[1:])
module = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}
parser.update({"device": "cpu", "network_def": module})
parser.get_parsed_content("initialize")
parser.get_parsed_content("network")(torch.ones(3, 2)).sum().backward()
assert threads() > 0
parser.get_parsed_content("finalize")
assert threads() == 0
assert not torch.distributed.is_initialized()
assert parser.get_parsed_content("network_def")(torch.ones(3, 2)).shape == (3, 1)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux")
def test_no_thread_outlives_its_group():
    """In a process of its own: what another test has imported could hide a reference."""
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "multi_gpu_train")]
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, *configs]
    done = subprocess.run(program, env=os.environ | one, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
