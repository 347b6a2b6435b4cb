"""What a run may compute in."""

from __future__ import annotations

import pytest

from common.errors import InputError
from common.workflows import check_precision


@pytest.mark.parametrize(
    ("precision", "device", "sentence"),
    [
        ("float8", "cuda:0", "is 'float8'; allowed are 'float32', 'float16', 'bfloat16'."),
        ("float16", "cpu", "is 'float16' on cpu; allowed there are 'float32' and 'bfloat16'."),
        ("bfloat16", "mps", "is 'bfloat16' on mps; allowed there is 'float32'."),
        ("float16", "xpu:0", "is 'float16' on xpu:0; allowed there is 'float32'."),
    ],
)
def test_refused(precision: str, device: str, sentence: str):
    with pytest.raises(InputError) as refused:
        check_precision(precision, device)
    assert str(refused.value) == f"precision {sentence}"


def test_autocast_to_float32_is_none():
    with pytest.raises(InputError) as refused:
        check_precision("float32", "cpu", amp=True)
    expected = "amp is True, but precision is 'float32'; allowed with it are 'float16' and "
    assert str(refused.value) == f"{expected}'bfloat16'."


@pytest.mark.parametrize(
    ("precision", "device"),
    [("float16", "cuda:0"), ("bfloat16", "cuda"), ("bfloat16", "cpu"), ("float32", "mps")],
)
def test_allowed(precision: str, device: str):
    check_precision(precision, device, amp=precision != "float32")
    check_precision(precision, device)  # as in the configs of earlier bundles
