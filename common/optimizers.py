"""What optimisers need beside torch's own."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """The optimiser, clipping the norm of all its parameters' gradients before every step.

    A hook of the step sees the gradients as they are used: summed over processes, and after a
    ``GradScaler`` has undone its scaling. A step that the scaler leaves out clips nothing.

    Args:
        optimizer: any that does not undo the scaling inside its own step, as fused ones do.
        max_norm: largest Euclidean norm of the gradients together.

    Raises:
        ValueError: an argument is not as above.
    """
    if max_norm <= 0:
        raise ValueError(f"max_norm is {max_norm}; allowed are numbers above 0.")
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"optimizer is a fused {type(optimizer).__name__}; allowed are those with fused=False."
        )

    def clip(*_: object) -> None:
        gradients = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(gradients, max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
