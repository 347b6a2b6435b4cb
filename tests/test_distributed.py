from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

CONFIGS = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation/configs"
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
