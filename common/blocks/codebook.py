"""Vector quantisation with learnable prototypes (van den Oord et al. 2017, arXiv:1711.00937).

As the Codebook Mamba U-Net uses it (Teng et al., section 3.3, eq. 1 to 5): trained by gradients,
not by moving averages.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import samples_of_ranks, several_ranks, sum_over_ranks


class CodeUsage(NamedTuple):
    """How often each prototype was the nearest.

    Attributes:
        histogram: sites per prototype, (num_prototypes,).
        perplexity: exp of the histogram's entropy, from 1 (one prototype serves all sites) to
            num_prototypes (all serve equally many).
        dead: indices of the prototypes that served none.
    """

    histogram: Tensor
    perplexity: float
    dead: list[int]


class Codebook(nn.Module):
    """Replace the feature vector at each site by the nearest of `num_prototypes` prototypes.

    Nearest by squared Euclidean distance, the first of equals. Gradients pass the step unchanged
    (straight-through, eq. 4). In a process group, all ranks must train together where `init` is
    "data" or `restart_after` is given: rank 0 then draws for all, from the sites of all.

    Args:
        num_prototypes: K of the paper.
        dim: channels of a feature vector.
        beta: weight of the commitment term, see `forward`.
        init: "uniform" within 1 / num_prototypes; or "data", prototypes drawn from the sites of
            the first training batch (if it has fewer sites, the other prototypes stay uniform).
        restart_after: training batches without a site after which a prototype is moved to a random
            site; None never does.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        num_prototypes: int,
        dim: int,
        beta: float = 0.25,
        init: Literal["uniform", "data"] = "uniform",
        restart_after: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_prototypes", num_prototypes), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        if beta < 0:
            raise ValueError(f"beta is {beta}; allowed are numbers from 0.")
        if init not in ("uniform", "data"):
            raise ValueError(f"init is {init!r}; allowed are 'uniform' and 'data'.")
        if restart_after is not None and restart_after < 1:
            raise ValueError(
                f"restart_after is {restart_after}; allowed are None and whole numbers from 1."
            )
        self.beta = beta
        self.init = init
        self.restart_after = restart_after
        bound = 1 / num_prototypes
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, dim).uniform_(-bound, bound))
        # In the state dict, so that training resumed from one does not draw prototypes again.
        self.initialised: Tensor
        self.register_buffer("initialised", torch.tensor(init == "uniform"))
        self.idle: Tensor
        self.register_buffer(
            "idle", torch.zeros(num_prototypes, dtype=torch.long), persistent=False
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise a map.

        Args:
            z: features, (b, dim, ...).

        Returns:
            The quantised map, (b, dim, ...); the loss of eq. 5 per sample, (b,), with e the nearest
            prototype and sg the stop of gradients ::

                beta mean((z - sg(e))^2) + mean((sg(z) - e)^2)

            and the codes, indices of the nearest prototypes, (b, ...).
        """
        sites = z.movedim(1, -1).to(self.prototypes.dtype)  # (b, ..., dim)
        if self.training and not torch.jit.is_scripting():
            self._place(sites)
        codes = self.nearest(sites)
        if self.training and not torch.jit.is_scripting():
            self._count(codes)
        e = F.embedding(codes, self.prototypes)
        commitment = (sites - e.detach()).square().flatten(1).mean(1)
        attraction = (sites.detach() - e).square().flatten(1).mean(1)
        # The added zero has z's gradient; z + (e - z).detach() would round e.
        quantised = e.detach() + (sites - sites.detach())
        return quantised.movedim(-1, 1), self.beta * commitment + attraction, codes

    def nearest(self, sites: Tensor) -> Tensor:
        """Indices (...) of the prototypes nearest to feature vectors (..., dim)."""
        # |z - e|^2 without |z|^2, which all prototypes share. The difference that is left cancels:
        # in double precision, from the prototypes' centre, the order is that of the distances.
        prototypes = self.prototypes.detach().double()
        centre = prototypes.mean(0)
        prototypes = prototypes - centre
        products = (sites.detach().double() - centre) @ prototypes.T  # (..., num_prototypes)
        return (prototypes.square().sum(1) - 2 * products).argmin(-1)

    @torch.jit.unused
    def usage(self, codes: Tensor) -> CodeUsage:
        """Statistics of codes of any shape."""
        histogram = torch.bincount(codes.flatten(), minlength=len(self.prototypes))
        share = histogram.double() / histogram.sum()
        perplexity = torch.special.entr(share).sum().exp().item()
        return CodeUsage(histogram, perplexity, (histogram == 0).nonzero().flatten().tolist())

    @torch.jit.unused
    @torch.no_grad()
    def _place(self, sites: Tensor) -> None:
        """Move the prototypes that are due, to sites of this batch, (b, ..., dim)."""
        if self.init == "data" and not self.initialised:
            due = torch.arange(len(self.prototypes), device=sites.device)
        elif self.restart_after is not None:
            due = (self.idle >= self.restart_after).nonzero().flatten()
        else:
            return
        self.initialised.fill_(True)
        if not len(due):
            return
        sites = samples_of_ranks(sites).flatten(0, -2)
        drawn = torch.randperm(len(sites), device=sites.device)[: len(due)]
        due = due[: len(drawn)]
        self.prototypes[due] = sites[drawn].to(self.prototypes.dtype)
        self.idle[due] = 0
        if several_ranks():
            dist.broadcast(self.prototypes, src=0)

    @torch.jit.unused
    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        """Count for each prototype the batches since it had a site, on any rank."""
        if self.restart_after is None:
            return
        histogram = torch.bincount(codes.flatten(), minlength=len(self.prototypes))
        histogram = sum_over_ranks(histogram)
        self.idle.add_(1).masked_fill_(histogram > 0, 0)
