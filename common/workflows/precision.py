"""The arithmetic of a run, by one key."""

from __future__ import annotations

from ..errors import InputError

_PRECISIONS = ("float32", "float16", "bfloat16")


def check_precision(precision: str, device: str) -> None:
    """Check what a run computes in: float32, or autocast to one of two shorter types.

    Scans and norms are in float32 in all of them.

    Raises:
        InputError: it is none of the three, or a shorter one on a device whose autocast MONAI's
            engines do not use.
    """
    if precision not in _PRECISIONS:
        allowed = ", ".join(map(repr, _PRECISIONS))
        raise InputError(f"precision is {precision!r}; allowed are {allowed}.")
    if precision != "float32" and not str(device).startswith("cuda"):
        raise InputError(f"precision is {precision!r} on {device}; allowed there is 'float32'.")
