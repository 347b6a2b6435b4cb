"""nnU-Net's trainer with the networks of this package, and the recipes of their papers.

What a recipe does not say is nnU-Net's: plans, sampling, augmentation, the number of iterations,
and the gradients' clipping at 12. Networks see nnU-Net's axes, (z, y, x) of the files as they are
stored, as those of the papers' released code did.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.losses import DeepSupervisionLoss
from monai.utils import ensure_tuple
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from common.checkpoints import build_setting
from common.errors import InputError
from common.ignored import IGNORED
from common.losses import (
    BoundaryAwareBCEDiceLoss,
    CodebookMambaLoss,
    DiceCELoss,
    DiceCERegionTverskyLoss,
    HybridLoss,
    WeightedDeepSupervisionLoss,
)


class BundleTrainer(nnUNetTrainer):
    """Trains a network that a bundle's config describes; see nnU-Net's for the arguments.

    The description goes into the checkpoints, so that they tell `common.workflows.convert_nnunet`
    which network they are of. nnU-Net's deep supervision is off: a network of several scales gives
    them in training, and its loss brings the one target to each.

    Raises:
        InputError: the configuration is of a dimension that the network has not, or the data set
            of regions where the loss is of classes.
    """

    target: ClassVar[str]  # the network's class, as a config names it
    dims: ClassVar[Sequence[int]] = (2, 3)
    regions = False  # whether the loss is of regions, too
    multiple = 1  # of which a patch's size has to be, along each axis
    smallest = 1  # size of a patch along an axis
    epochs = 100
    rate = 1e-4
    decay = 0.0
    eps = 1e-8  # of Adam

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  # as nnU-Net's own has it
    ) -> None:
        plans = copy.deepcopy(plans)
        size = PlansManager(plans).get_configuration(configuration).patch_size
        if len(size) not in self.dims:
            raise InputError(
                f"{type(self).__name__} was asked for the configuration {configuration}, which is "
                f"{len(size)}D; allowed are those in {' or '.join(f'{n}D' for n in self.dims)}."
            )
        # In the plans, since predictions read it from there.
        plans["configurations"][configuration]["patch_size"] = [self.rounded(n) for n in size]
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.label_manager.has_regions and not self.regions:
            raise InputError(
                f"{type(self).__name__}'s loss is of classes, and dataset.json has the regions "
                f"{dataset_json['labels']}; allowed is one number for each label."
            )
        self.num_epochs = self.epochs
        self.initial_lr = self.rate
        self.weight_decay = self.decay
        self.enable_deep_supervision = False

    @classmethod
    def rounded(cls, size: int) -> int:
        """The size of a patch that the network takes, from that of the plan."""
        return max(cls.smallest, math.ceil(size / cls.multiple) * cls.multiple)

    @classmethod
    def network_def(
        cls, configuration: ConfigurationManager, in_channels: int, out_channels: int
    ) -> dict[str, Any]:
        """The network for a plan's configuration, as a bundle's config describes it."""
        return {
            "_target_": cls.target,
            "in_channels": in_channels,
            "out_channels": out_channels,
            **cls.arguments(configuration),
        }

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        """The network's arguments, but for its channels."""
        return {}

    def learning_rate(self, epoch: int) -> float:
        """That of an epoch, counted from 0: by default polynomial decay, as nnU-Net's own."""
        return self.initial_lr * (1 - epoch / self.num_epochs) ** 0.9

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
        )

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network, in training and in nnU-Net's prediction alike."""
        described = cls.network_def(configuration_manager, num_input_channels, num_output_channels)
        return build_setting("network_def", described)

    def initialize(self) -> None:
        super().initialize()
        heads = self.label_manager.num_segmentation_heads
        self.my_init_kwargs["network_def"] = self.network_def(
            self.configuration_manager, self.num_input_channels, heads
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, _Schedule]:
        optimizer = self.build_optimizer()
        return optimizer, _Schedule(optimizer, self.learning_rate)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to do: in evaluation, networks give the finest scale alone."""

    def _do_i_compile(self) -> bool:
        return False  # kernels of this package are not for torch.compile to see into

    def _of_labels(self, loss: nn.Module) -> nn.Module:
        return _WithIgnored(loss, self.label_manager.ignore_label)


class _Schedule:
    """What nnU-Net asks of a scheduler: the learning rate of an epoch, whatever went before."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, learning_rate: Callable[[int], float]
    ) -> None:
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)


class _WithIgnored(nn.Module):
    """A loss of this package for nnU-Net's label maps (b, 1, ...)."""

    def __init__(self, loss: nn.Module, ignore_label: int | None) -> None:
        super().__init__()
        self.loss = loss
        self.ignore_label = ignore_label

    def forward(self, output: Tensor | list[Tensor], target: Tensor) -> Tensor:
        target = target.float()
        if self.ignore_label is not None:
            target = target.masked_fill(target == self.ignore_label, IGNORED)
        return self.loss(output, target)


class LightMUNetTrainer(BundleTrainer):
    """LightM-UNet as its released trainer has it, in 2D and 3D: 100 epochs in float32."""

    target = "common.networks.LightMUNet"
    regions = True
    smallest = 8
    decay = 1e-5
    eps = 1e-5

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {
            "spatial_dims": len(configuration.patch_size),
            "init_filters": 32,
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": [1, 1, 1],
        }

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One step, without nnU-Net's autocast on GPUs."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network(data), target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}


class MambaClinixTrainer(BundleTrainer):
    """MambaClinix as its released trainer has it, its stages from the plan: 1000 epochs."""

    target = "common.networks.MambaClinix"
    dims = (3,)
    epochs = 1000
    decay = 1e-5
    eps = 1e-5

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        planned = configuration.network_arch_init_kwargs
        return {
            "features": planned["features_per_stage"],
            "strides": planned["strides"],
            "kernel_sizes": planned["kernel_sizes"],
            "deep_supervision": True,
        }

    def _build_loss(self) -> nn.Module:
        batch = self.configuration_manager.batch_dice
        loss = DiceCERegionTverskyLoss(regions_per_axis=(8, 8, 14), batch=batch)
        return self._of_labels(WeightedDeepSupervisionLoss(loss))


class _NesterovTrainer(BundleTrainer):
    """nnU-Net's optimiser."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            momentum=0.99,
            weight_decay=self.weight_decay,
            nesterov=True,
        )


class UMambaBotTrainer(_NesterovTrainer):
    """U-Mamba with Mamba in the bottleneck, of release 2, its stages from the plan: 1000 epochs.

    The recipe is its released trainer's, which is nnU-Net's own: SGD, deep supervision, nnU-Net's
    loss of classes or regions.
    """

    target = "common.networks.UMamba"
    regions = True
    epochs = 1000
    rate = 1e-2
    decay = 3e-5

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        planned = configuration.network_arch_init_kwargs
        return {
            "spatial_dims": len(configuration.patch_size),
            "variant": "bottleneck",
            "release": 2,
            "features": planned["features_per_stage"],
            "kernel_sizes": planned["kernel_sizes"],
            "strides": planned["strides"],
            "deep_supervision": True,
        }

    def _build_loss(self) -> nn.Module:
        return _AtEachScale(super()._build_loss())


class UMambaEncTrainer(UMambaBotTrainer):
    """The same with Mamba after the encoder's stages, for the plan's patch."""

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {
            **UMambaBotTrainer.arguments(configuration),
            "variant": "encoder",
            "input_size": list(configuration.patch_size),
        }


class _AtEachScale(WeightedDeepSupervisionLoss):
    """nnU-Net's loss at each scale, with its weights and the labels as it brings them there."""

    def forward(self, output: Tensor | list[Tensor], target: Tensor) -> Tensor:
        return super().forward(output, target.float())  # whole numbers are not interpolated


class LCMambaNetTrainer(BundleTrainer):
    """LCMambaNet of variant T, in 2D, from scratch: Adam, the rate divided at plateaus."""

    target = "common.networks.LCMambaNet"
    dims = (2,)
    epochs = 400

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {"variant": "T"}

    def learning_rate(self, epoch: int) -> float:
        """A tenth of it wherever nnU-Net's Dice has not risen for ten epochs."""
        counted = torch.optim.SGD([torch.zeros(1)], self.initial_lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(counted, "max", patience=10)
        for before in range(epoch):
            plateau.step(self.logger.get_value("mean_fg_dice", before))
        return counted.param_groups[0]["lr"]

    def _build_loss(self) -> nn.Module:
        loss = DeepSupervisionLoss(BoundaryAwareBCEDiceLoss(), weight_mode="same")
        return self._of_labels(loss)


class CodebookMambaUNetTrainer(BundleTrainer):
    """Codebook Mamba U-Net, in 3D: Adam 1e-3, 160 epochs.

    Where dataset.json has two regions, of which the second is part of the first (the whole liver
    and its tumours), with the paper's loss; else nnU-Net's loss and that of the codebook.
    """

    target = "common.networks.CodebookMambaUNet"
    dims = (3,)
    regions = True
    smallest = 16
    epochs = 160
    rate = 1e-3

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {"codebook_init": "data"}

    def _build_loss(self) -> nn.Module:
        if self.label_manager.has_regions:
            regions = [set(ensure_tuple(x)) for x in self.label_manager.foreground_regions]
            if len(regions) == 2 and regions[1] < regions[0]:
                return _OfRegions(CodebookMambaLoss(), self.label_manager.has_ignore_label)
        return _WithCodebook(super()._build_loss())


class _OfRegions(nn.Module):
    """A loss of this package for nnU-Net's maps (b, regions, ...), ignored voxels in one more."""

    def __init__(self, loss: nn.Module, has_ignored: bool) -> None:
        super().__init__()
        self.loss = loss
        self.has_ignored = has_ignored

    def forward(self, output: Any, target: Tensor) -> Tensor:
        target = target.float()
        if self.has_ignored:
            target = target[:, :-1].masked_fill(target[:, -1:] > 0, IGNORED)
        return self.loss(output, target)


class _WithCodebook(nn.Module):
    """A loss of logits and, in training, 0.4 times that of the codebook."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return self.loss(output, target)
        return self.loss(output.logits, target) + 0.4 * output.codebook_loss.float().mean()


class ELANResMSCAUNetTrainer(BundleTrainer):
    """ELANRes-MSCA-UNet in one stage, in 3D: Adam, its rate times 0.8 every 30 epochs, 300 of them.

    So is the weight of the loss's coarser scales.
    """

    target = "common.networks.ELANResMSCAUNet"
    dims = (3,)
    smallest = 16
    epochs = 300

    def learning_rate(self, epoch: int) -> float:
        return self.initial_lr * 0.8 ** (epoch // 30)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        coarser = 0.4 * 0.8 ** (self.current_epoch // 30)
        self.loss.loss.weights = [1.0, coarser, coarser, coarser]

    def _build_loss(self) -> nn.Module:
        return self._of_labels(DeepSupervisionLoss(HybridLoss("dice_bce")))


class SegResNetTrainer(BundleTrainer):
    """SegResNet as LightM-UNet's release compares with it: Adam, polynomial decay."""

    target = "monai.networks.nets.SegResNet"
    regions = True
    multiple = 8
    decay = 1e-5

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {
            "spatial_dims": len(configuration.patch_size),
            "init_filters": 32,
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": [1, 1, 1],
        }


class UNETRTrainer(BundleTrainer):
    """UNETR as LightM-UNet's release compares with it: AdamW, linear decay."""

    target = "common.networks.UNETR"
    regions = True
    multiple = 16
    decay = 0.01

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        size = list(configuration.patch_size)
        return {
            "img_size": size,
            "feature_size": 16,
            "hidden_size": 768,
            "mlp_dim": 3072,
            "num_heads": 12,
            "norm_name": "instance",
            "spatial_dims": len(size),
        }

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
        )

    def learning_rate(self, epoch: int) -> float:
        return self.initial_lr * (1 - epoch / self.num_epochs)


class SwinUNETRTrainer(UNETRTrainer):
    """Swin UNETR as LightM-UNet's release compares with it: AdamW 8e-4, cosine to 1e-6."""

    target = "monai.networks.nets.SwinUNETR"
    multiple = 32
    rate = 8e-4

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {
            "depths": [2, 2, 2, 2],
            "num_heads": [3, 6, 12, 24],
            "feature_size": 48,
            "spatial_dims": len(configuration.patch_size),
        }

    def learning_rate(self, epoch: int) -> float:
        left = (1 + math.cos(math.pi * epoch / self.num_epochs)) / 2
        return 1e-6 + (self.initial_lr - 1e-6) * left


class VMUNetTrainer(BundleTrainer):
    """VM-UNet as its release trains on Synapse, in 2D, from scratch: AdamW, a rate that cycles.

    300 epochs; the loss is nnU-Net's, of cross entropy and Dice as that of the release.
    """

    target = "common.networks.VMUNet"
    dims = (2,)
    regions = True
    multiple = 32
    epochs = 300
    rate = 1e-3
    decay = 1e-2
    least = 1e-5  # the lowest rate
    period: int | None = 100  # epochs of the fall to it; None is all

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
        )

    def learning_rate(self, epoch: int) -> float:
        left = (1 + math.cos(math.pi * epoch / (self.period or self.num_epochs))) / 2
        return self.least + (self.initial_lr - self.least) * left


class SwinUMambaTrainer(VMUNetTrainer):
    """Swin-UMamba as its released trainer without pretrained weights has it, in 2D: 1000 epochs.

    AdamW, cosine to 1e-6, nnU-Net's loss with deep supervision.
    """

    target = "common.networks.SwinUMamba"
    epochs = 1000
    rate = 1e-4
    decay = 0.05
    eps = 1e-5
    least = 1e-6
    period = None

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {"decoder": "convolution"}

    def _build_loss(self) -> nn.Module:
        # The target's class for voxels that nobody labelled stays: nnU-Net's loss knows it.
        return _WithIgnored(WeightedDeepSupervisionLoss(super()._build_loss()), None)


class SwinUMambaDTrainer(SwinUMambaTrainer):
    """Swin-UMamba† as its released trainer without pretrained weights: no deep supervision."""

    @staticmethod
    def arguments(configuration: ConfigurationManager) -> dict[str, Any]:
        return {"decoder": "mamba", "deep_supervision": False}


class SegMambaTrainer(_NesterovTrainer):
    """SegMamba as its release trains, in 3D: SGD with Nesterov momentum, 1000 epochs.

    The loss is cross entropy alone.
    """

    target = "common.networks.SegMamba"
    dims = (3,)
    multiple = 32
    epochs = 1000
    rate = 1e-2
    decay = 3e-5

    def _build_loss(self) -> nn.Module:
        return self._of_labels(DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0.0))
