"""Every bundle in bfloat16 on the CPU, and in less memory, as users run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.phantom import write_phantom

from .conftest import REPOSITORY
from .running import command, succeed
from .test_bundle_runs import SMALL as LIGHTM
from .test_codebook_bundle import SHORT as CODEBOOK
from .test_elanres_bundle import SHORT as ELANRES
from .test_lcmambanet_bundle import SHORT as LCMAMBANET
from .test_lung_bundle import SMALL as LUNG
from .test_mambaclinix_bundle import SHORT as MAMBACLINIX
from .test_segmamba_bundle import SHORT as SEGMAMBA
from .test_skin_lesion_bundle import SHORT as VM_UNET
from .test_swin_umamba_bundle import SHORT as SWIN_UMAMBA
from .test_umamba_bundle import SHORT as UMAMBA

# Bundle -> options of its training, small.
OPTIONS: dict[str, dict[str, Any]] = {
    "hippocampus_mr_lightm_unet_segmentation": LIGHTM | {"max_epochs": 1},
    "abdomen_ct_umamba_segmentation": UMAMBA,
    "brain_tumor_mr_segmamba_segmentation": SEGMAMBA | {"in_channels": 1, "spacing": [6, 6, 8]},
    "liver_ct_lightm_unet_segmentation": LIGHTM | {"max_epochs": 1},
    "liver_tumor_ct_codebook_mamba_segmentation": CODEBOOK,
    "liver_tumor_ct_elanres_msca_segmentation": ELANRES,
    "liver_tumor_ct_lcmambanet_segmentation": LCMAMBANET,
    "liver_tumor_ct_mambaclinix_segmentation": MAMBACLINIX,
    "lung_cxr_lightm_unet_segmentation": LUNG | {"max_epochs": 1},
    "abdomen_mr_swin_umamba_segmentation": SWIN_UMAMBA,
    "skin_lesion_rgb_vm_unet_segmentation": VM_UNET,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_from_training_to_masks_in_bfloat16(name: str, tmp_path: Path):
    bundle = REPOSITORY / "bundles" / name
    cxr = "cxr" in name or "rgb" in name
    of: dict[str, Any] = {"kind": "cxr", "size": 96} if cxr else {"kind": "ct", "size": 48}
    dataset = write_phantom(tmp_path / "data", cases=10 if cxr else 6, seed=1, **of)
    run = {"bundle_root": tmp_path, "dataset_dir": dataset, "device": "cpu"}
    run["precision"] = "bfloat16"
    stages = ({"stage": "liver"}, {"stage": "tumor"}) if "elanres" in name else ({},)
    for stage in stages:
        succeed(command(bundle, "train", checkpointing=True, **run | OPTIONS[name] | stage))
    state = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(x.isfinite().all() for x in state.values())
    assert not any(x.dtype == torch.bfloat16 for x in state.values())
    succeed(command(bundle, ["train", "evaluate"], **run | OPTIONS[name]))
    assert (tmp_path / "eval/metrics.csv").is_file()
    run["dataset_dir"] = images = dataset / ("CXR_png" if cxr else "imagesTr")
    succeed(command(bundle, "inference", output_dir=tmp_path / "masks", **run))
    assert len(list((tmp_path / "masks").rglob("*_seg.*"))) == len(list(images.iterdir()))


def test_every_bundle_is_here():
    assert sorted(OPTIONS) == sorted(path.name for path in (REPOSITORY / "bundles").iterdir())
