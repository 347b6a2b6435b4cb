import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import InputError, input_error_in, listed


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
