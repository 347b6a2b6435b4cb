"""Peak memory and seconds of inference of large volumes, by a bundle's own config.

    python -m benchmarks.memory [--size 512 512 600] [--classes 14 3] [--overlap 0.5] [--compare]
        [--threads 2]

The bundle is MambaClinix', with its plan for many organs where there are more than three classes,
and one 1 x 1 x 1 convolution in the place of the network: what is measured is all but that. The
volume's voxels are a little smaller than the bundle's, so that as many as it has are resampled, and
back. Each run has a process of its own, whose memory at its peak is given: all that was resident
(VmHWM), and of it what is no file's (sampled). With --compare a second run has MONAI's chain in
place of ours, which gathers classes x volume in memory, and the table says in how many voxels the
masks differ.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine, silenced, status

CONFIGS = Path(__file__).parents[1] / "bundles/liver_tumor_ct_mambaclinix_segmentation/configs"
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 600])
    parser.add_argument("--classes", type=int, nargs="+", default=[14, 3])
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    rows = []
    preload = ["benchmarks.memory", "monai.bundle"]
    chains = ["bounded", "MONAI's"] if options.compare else ["bounded"]
    with tempfile.TemporaryDirectory() as folder:
        for classes in tqdm(options.classes, desc="classes"):
            masks: dict[str, Path] = {}
            for chain in chains:
                name = [str(classes), chain]
                masks[chain] = Path(folder, f"{classes} {chain}")
                try:
                    in_own_process(prepare, folder, options.size, classes, preload=preload)
                    peak, anonymous, seconds, processor = in_own_process(
                        infer, folder, masks[chain], classes, chain, options.overlap,
                        options.threads, preload=preload,
                    )  # fmt: skip
                except Failed as failure:
                    rows.append([*name, str(failure)])
                    continue
                differing = "" if len(masks) == 1 else str(differences(*masks.values()))
                rows.append(
                    [
                        *name,
                        f"{peak / GIB:.2f}",
                        f"{anonymous / GIB:.2f}",
                        f"{seconds:.0f}",
                        f"{processor:.0f}",
                        differing,
                    ]
                )
    size = " x ".join(map(str, options.size))
    say(f"Inference of {size} voxels. {machine('cpu', options.threads)}\n")
    header = [
        "classes",
        "chain",
        "peak GiB",
        "not of files",
        "seconds",
        "of processors",
        "voxels that differ",
    ]
    say(table(header[: len(header) - (not options.compare)], [row[: len(header)] for row in rows]))


def _configs(classes: int) -> list[str]:
    """Those that a user would give."""
    names = ["inference"] + ["multi_organ_ct"] * (classes > 3)
    return [str(CONFIGS / f"{name}.json") for name in names]


def prepare(folder: str, size: list[int], classes: int) -> None:
    """A volume, and the checkpoint of a network whose classes are bands of its values."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, *(max(n // 24, 2) for n in size))
    values = F.interpolate(coarse, size=size, mode="trilinear")[0, 0] * 100 + 90
    affine = np.diag([-0.79, -0.79, 2.47 if classes > 3 else 1.21, 1])
    if classes <= 3:
        affine[:2] *= 0.95
    nib.save(nib.Nifti1Image(values.short().numpy(), affine), Path(folder, "volume.nii"))
    middles = torch.linspace(-2, 2, classes)
    network = nn.Conv3d(1, classes, 1)
    with torch.no_grad():
        network.weight.copy_(middles.view(-1, 1, 1, 1, 1))
        network.bias.copy_(-(middles**2) / 2)
    torch.save(network.state_dict(), Path(folder, "model.pt"))


def infer(
    folder: str, masks: Path, classes: int, chain: str, overlap: float, threads: int
) -> tuple[int, int, float, float]:
    """Bytes at the peak, those of them that are not of files, seconds, and processors' seconds."""
    from monai.bundle import run

    torch.set_num_threads(threads)
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": classes}
    overrides: dict[str, Any] = {
        "device": "cpu",
        "dataset_dir": str(Path(folder, "volume.nii")),
        "checkpoint": str(Path(folder, "model.pt")),
        "output_dir": str(masks),
        "num_classes": classes,
        "overlap": overlap,
        "network_def": network | {"kernel_size": 1},
    }
    if chain != "bounded":
        overrides |= _monais_chain()
    with silenced(), _sampled_anonymous() as anonymous:
        start, processor = time.perf_counter(), time.process_time()
        run(config_file=_configs(classes), **overrides)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return status("VmHWM"), max(anonymous), seconds, processor


def _monais_chain() -> dict[str, Any]:
    """Overrides that put MONAI's own inferer and transforms in the place of ours."""
    pred = {"keys": "pred"}
    inverse = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    return {
        "inferer#inferer#inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@patch_size",
            "sw_batch_size": "@sw_batch_size",
            "overlap": "@overlap",
            "mode": "gaussian",
        },
        "postprocessing#transforms#0": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "softmax": True} | pred,
                {"_target_": "Invertd"} | inverse | pred,
                {"_target_": "AsDiscreted", "argmax": True} | pred,
            ],
        },
    }


@contextlib.contextmanager
def _sampled_anonymous() -> Any:
    """Bytes that were resident and of no file, every twentieth of a second."""
    found, ended = [status("RssAnon")], threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            found.append(status("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def differences(*folders: Path) -> int:
    first, second = (
        np.asarray(nib.load(folder / "volume_seg.nii.gz").dataobj) for folder in folders
    )
    return int((first != second).sum())


if __name__ == "__main__":
    main()
