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
    DistributedDataParallel, leave it as it is. Each network's buffer ``num_batches_trained`` counts
    what it was trained with, so that one that never was is not taken for trained.

    Args:
        liver, tumour: each from a volume to one channel of logits of equal size.
        stage: "liver", "tumor" or None for both.
        dropout: probability of both networks' dropout layers; None leaves them as they are.

    Raises:
        ValueError: an argument is not as above; or, at a call, a training has no stage.
    """

    def __init__(
        self,
        liver: nn.Module,
        tumour: nn.Module,
        stage: Stage | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if stage is not None and stage not in _STAGES:
            raise ValueError(f"stage is {stage!r}; allowed are 'liver', 'tumor' and None.")
        if dropout is not None:
            if not 0 <= dropout < 1:
                raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
            for module in (*liver.modules(), *tumour.modules()):
                if isinstance(module, nn.Dropout3d):
                    module.p = dropout
        self.liver = liver
        self.tumour = tumour
        self.stage = stage
        for network in (liver, tumour):
            network.register_buffer("num_batches_trained", torch.tensor(0))
        if stage is not None:  # what its own network does not train, stays so
            (tumour if stage == "liver" else liver).requires_grad_(False)

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
                network = self.liver if self.stage == "liver" else self.tumour
                if self.training and torch.is_grad_enabled():
                    cast(Tensor, network.num_batches_trained).add_(1)
                return cast(Tensor, network(x))
            if self.training and torch.is_grad_enabled():
                raise ValueError("stage is None; allowed in training are 'liver' and 'tumor'.")
        liver, tumour = self.liver(x), self.tumour(x)
        assert isinstance(liver, Tensor)
        assert isinstance(tumour, Tensor)
        return torch.cat([liver, tumour], 1)
