"""Two networks in a row: the liver in the whole volume, then tumours inside it (paper 4, 2.1)."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Stage = Literal["liver", "tumor"]

_STAGES = ("liver", "tumor")


class LiverTumourCascade(nn.Module):
    """The networks of both stages, so that one state dict holds the whole: liver.*, tumour.*.

    Without a stage it is for evaluation and export: volumes (b, c, h, w, d) to two channels of
    logits, (b, 2, h, w, d), the liver with its tumours and the tumours. Where the second network
    looks, and what counts, is `common.inferers.CascadeInferer`'s part.

    With a stage it is that stage's network, in training and in validation. The other one does not
    run, and its parameters ask for no gradient, so that an optimiser of those that do, and
    DistributedDataParallel, leave it as it is.

    Args:
        liver, tumour: each from a volume to one channel of logits of equal size.
        stage: "liver", "tumor" or None for both.

    Raises:
        ValueError: the stage is another; or, at a call, training mode has no stage.
    """

    def __init__(self, liver: nn.Module, tumour: nn.Module, stage: Stage | None = None) -> None:
        super().__init__()
        if stage is not None and stage not in _STAGES:
            raise ValueError(f"stage is {stage!r}; allowed are 'liver', 'tumor' and None.")
        self.liver = liver
        self.tumour = tumour
        self.stage = stage
        if stage is not None:
            liver.requires_grad_(stage == "liver")
            tumour.requires_grad_(stage == "tumor")

    def reparameterize(self) -> LiverTumourCascade:
        """A copy for inference, in eval mode, of two networks folded by their `reparameterize`.

        Raises:
            ValueError: a network has no such method.
        """
        folded = copy.copy(self)
        folded._modules = {}
        for name, network in self.named_children():
            if not hasattr(network, "reparameterize"):
                raise ValueError(
                    f"The network {name} is {type(network).__name__}, which has no convolutions "
                    "to fold; allowed is ELANResMSCAUNet."
                )
            folded.add_module(name, cast(Any, network).reparameterize())
        return folded.eval()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not torch.jit.is_scripting():
            if self.stage is not None:
                return cast(Tensor, self.liver(x) if self.stage == "liver" else self.tumour(x))
            if self.training:
                raise ValueError("stage is None; allowed in training are 'liver' and 'tumor'.")
        liver, tumour = self.liver(x), self.tumour(x)
        assert isinstance(liver, Tensor)
        assert isinstance(tumour, Tensor)
        return torch.cat([liver, tumour], 1)
