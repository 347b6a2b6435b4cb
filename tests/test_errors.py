import subprocess
import sys
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError, are_numbers, input_error_in, listed, nearest


def test_found_in_causes_contexts_and_text():
    sentence = "There is no folder x."
    assert input_error_in(InputError(sentence)) == sentence
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = InputError(sentence)
    assert input_error_in(wrapped) == sentence
    later = RuntimeError("engine")
    later.__context__ = wrapped
    assert input_error_in(later) == sentence
    text = f"Caught RuntimeError in worker 0.\ncommon.errors.InputError: {sentence}\nThe above"
    assert input_error_in(RuntimeError(text)) == sentence
    assert input_error_in(RuntimeError("another")) is None


PROGRAM = """
import logging
from common.errors import InputError, explain_input_errors
logging.basicConfig()
explain_input_errors()
explain_input_errors()
try:
    raise {inner}
except Exception as error:
    logging.getLogger("engine").exception("failed")
    raise RuntimeError("applying transform") from error
"""


@pytest.mark.parametrize(
    ("inner", "tracebacks"), [("InputError('No such file.')", 0), ("KeyError('bug')", 4)]
)
def test_process_ends_with_one_sentence(inner: str, tracebacks: int):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(inner=inner)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") + done.stderr.count("direct cause") == tracebacks
    if not tracebacks:
        assert done.stderr == "ERROR:engine:No such file.\nerror: No such file.\n"


def test_a_sentence_lists_the_first_twenty():
    assert listed(["a", Path("b")]) == "a; b"
    assert listed(range(22)).endswith("; 18; 19; and 2 more")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("overlp", "; the nearest is --overlap"),
        ("size", "; the nearest are --patch_size; --image_size"),  # it is a part of both
        ("volume", "; allowed are --overlap; --patch_size; --image_size"),
    ],
)
def test_the_nearest_name_is_suggested(name: str, expected: str):
    assert nearest(name, ["overlap", "patch_size", "image_size"], prefix="--") == expected
    assert nearest(name, []) == "; allowed are none"


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ([1, 2.5], {}),
        ((7, 1, 0), {"count": 3, "least": 0, "whole": True}),
        (np.array([1.5, 2.5]), {"count": 2, "above": 1}),
        ([np.int64(3), np.float32(0.5)], {}),
        (torch.tensor([4, 8]), {"whole": True}),
        ([10**400], {"whole": True}),
    ],
)
def test_lists_of_numbers(value: object, options: dict):
    assert are_numbers(value, **options)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        *(
            (value, {})
            for value in (5, None, "5", "1,2", [], {}, {1: 2}, [[1, 2]], torch.tensor(5))
        ),
        *(([1, value], {}) for value in ("2", None, True, nan, inf, -inf, 2j)),
        ([1, 2], {"count": 3}),
        ([1, 2.0], {"whole": True}),
        ([0, 1], {"above": 0}),
        ([-1, 1], {"least": 0}),
    ],
)
def test_what_is_no_list_of_numbers(value: object, options: dict):
    assert not are_numbers(value, **options)
