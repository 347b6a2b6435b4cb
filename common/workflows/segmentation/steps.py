"""How long the steps of a study take, and how much memory."""

from __future__ import annotations

from typing import Any

from ...measure import now, peak_in_use


class Steps:
    """The steps of a study, one after the other, from now on.

    Attributes:
        found: of each step ``seconds`` and ``peak_memory_bytes``, the most so far of what the
            process held: of the GPU's memory by torch, else all that was resident.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._began = now("cpu")

    def ended(self, name: str, device: str) -> None:
        """What was done since the step before, on "cpu", "cuda:0", ..., is of this name."""
        kind = device if device.startswith("cuda") else "cpu"
        at = now(kind)
        self.found[name] = {
            "seconds": round(at - self._began, 3),
            "peak_memory_bytes": peak_in_use(kind),
        }
        self._began = at

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return round(sum(step["seconds"] for step in self.found.values()), 3)
