"""One network after another: the liver, then tumours in its box."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import generate_spatial_bounding_box
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from ..components import largest_component
from ..errors import InputError, are_numbers

_logger = logging.getLogger(__name__)

_NOWHERE = -1000.0  # a logit whose probability is 0


class CascadeInferer(Inferer):
    """One network for the liver, then another for tumours in its box.

    Volumes (b, c, h, w, d) become two channels of logits, (b, 2, h, w, d), for nested regions
    (ELANRes-MSCA-UNet, section 2.1). The liver is the largest connected component of where its
    probability is above 0.5; elsewhere the channel keeps what is not above 0.5, so that a later
    interpolation finds the liver's edge where it was. Tumour has the probability 0 outside the
    liver's box; inside the box it may reach beyond the liver, where
    `common.transforms.NestedLabelsd` takes it away. Without a liver there is no tumour, and the log
    has a warning that names the file.

    Args:
        inferer: how both networks are applied, to the volume and to the box; it has to pad what is
            smaller than they take, as `SlidingWindowInferer` does.
        margin: voxels around the liver in its box, one number or one per axis.
        reparameterize: fold both networks' parallel convolutions before a volume, in a copy: what
            a checkpoint loads into stays as it is.

    Raises:
        InputError: margin is below 0; or, at a call, the network has not both stages, one of them
            was never trained, or it cannot be folded.
    """

    def __init__(
        self,
        inferer: Inferer,
        margin: Sequence[int] | int = 8,
        reparameterize: bool = False,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        several = isinstance(margin, (list, tuple))
        if not are_numbers(margin if several else [margin], 3 if several else 1, 0, whole=True):
            raise InputError(
                f"margin is {margin!r}; allowed are whole numbers from 0, one or three."
            )
        self.margin = ensure_tuple_rep(margin, 3)
        self.reparameterize = reparameterize

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of both stages.

        Args:
            inputs: volumes; a MetaTensor tells which files they came from.
            network: has the networks `liver` and `tumour`, each with one channel of logits.
            args, kwargs: for both networks.
        """
        for name in ("liver", "tumour"):
            _check_trained(network, name)
        if self.reparameterize:
            try:
                network = network.reparameterize()  # type: ignore[operator]
            except ValueError as error:
                raise InputError(str(error)) from error
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        logits = [
            self._one(volume, network, file, *args, **kwargs)
            for volume, file in zip(volumes.split(1), _files(inputs), strict=True)
        ]
        return torch.cat(logits)

    def _one(
        self, volume: Tensor, network: nn.Module, file: str, *args: Any, **kwargs: Any
    ) -> Tensor:
        liver = self.inferer(volume, network.liver, *args, **kwargs).float()
        tumour = torch.full_like(liver, _NOWHERE)
        found = (liver > 0)[0, 0]
        component = torch.from_numpy(largest_component(found.numpy(force=True))).to(found.device)
        if not component.any():
            _logger.warning("No liver was found in %s: no tumour is looked for.", file)
            return torch.cat([liver, tumour], 1)
        liver[0, 0][found & ~component] = _NOWHERE
        start, end = generate_spatial_bounding_box(
            component[None], margin=self.margin, allow_smaller=True
        )
        h, w, d = (slice(a, b) for a, b in zip(start, end, strict=True))
        inside = self.inferer(volume[..., h, w, d], network.tumour, *args, **kwargs)
        tumour[..., h, w, d] = inside.float()
        return torch.cat([liver, tumour], 1)


def _check_trained(network: nn.Module, name: str) -> None:
    stage = getattr(network, name, None)
    if stage is None:
        raise InputError(
            f"The network {type(network).__name__} has no stage {name}; allowed is "
            "LiverTumourCascade."
        )
    if not stage.num_batches_trained:
        raise InputError(
            f"The {name}'s network was never trained; train it with --stage "
            f"{'tumor' if name == 'tumour' else name}, or join the checkpoints of both stages: "
            "python -m common join --help."
        )


def _files(inputs: Tensor) -> list[str]:
    """The file of each volume of a batch."""
    files = getattr(inputs, "meta", {}).get("filename_or_obj", "a volume in memory")
    return [str(file) for file in ensure_tuple_rep(files, len(inputs))]
