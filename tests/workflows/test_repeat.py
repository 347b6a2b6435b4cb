"""What is refused before a run; the runs themselves are in test_codebook_bundle.py."""

from pathlib import Path

import pytest

from common.errors import InputError
from common.workflows import run_with_seeds

from ..conftest import REPOSITORY

BUNDLE = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"bundle": REPOSITORY}, "There is no .*train.json; needed is a bundle, by --bundle"),
        ({"seeds": [42, 42]}, r"seeds is \[42, 42\]; allowed are different whole numbers"),
        ({"seeds": ["a"]}, r"seeds is \['a'\]; allowed are different whole numbers"),
        ({"seeds": []}, r"seeds is \[\]; allowed are different whole numbers"),
        ({"overrides": {"seed": 3}}, "seed is given, which each run sets itself"),
        ({"overrides": {"bundle_root": "x"}}, "bundle_root is given, which each run sets itself"),
    ],
)
def test_what_cannot_run_is_named(tmp_path: Path, arguments: dict, expected: str):
    usual = {"bundle": BUNDLE, "output": tmp_path, "seeds": [42, 57]}
    with pytest.raises(InputError, match=expected):
        run_with_seeds(**(usual | arguments))
    assert not list(tmp_path.iterdir())
