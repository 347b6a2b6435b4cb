"""Python runs this at its start where this folder is on PYTHONPATH.

PyPI's torchvision is built for CUDA. With a CPU build of torch its operators do not load, and its
import fails at two that it takes for granted; neither MONAI Label nor nnU-Net calls them.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
