"""The arithmetic of a run, by one key."""

from __future__ import annotations

from ..errors import InputError, check_choice

# By the kind of device. On the CPU float16 would need a scaler of gradients, which MONAI's trainer
# has for CUDA alone; bfloat16 has float32's range.
_PRECISIONS = {"cuda": ("float32", "float16", "bfloat16"), "cpu": ("float32", "bfloat16")}


def check_precision(precision: str, device: str, amp: bool = False) -> None:
    """Check what a run computes in: float32, or autocast to one of two shorter types.

    Scans and norms are in float32 in all of them.

    Raises:
        InputError: it is none of the three, or none that runs on the device; or `amp` asks for
            autocast to float32.
    """
    check_choice("precision", precision, _PRECISIONS["cuda"])
    allowed = _PRECISIONS.get(str(device).partition(":")[0], ("float32",))
    if precision not in allowed:
        verb = "are" if len(allowed) > 1 else "is"
        raise InputError(
            f"precision is {precision!r} on {device}; allowed there {verb} "
            f"{' and '.join(map(repr, allowed))}."
        )
    if amp and precision == "float32":
        raise InputError(
            "amp is True, but precision is 'float32'; allowed with it are 'float16' and 'bfloat16'."
        )
