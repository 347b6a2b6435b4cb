"""Checkpoints, and what is written of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, by_axis
from ..files import as_json
from .output import say


def convert(
    checkpoint: str,
    network: str,
    output: str,
    axcodes: str | None = None,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    intensity: Sequence[float] | str | None = None,
    strides: Sequence[Sequence[int]] | None = None,
) -> None:
    """Rename a checkpoint of a paper's released code for the network of that name here.

    Of LightM-UNet and U-Mamba in 3D and MambaClinix give --spacing and --patch_size of the nnU-Net
    plan that it was trained with, as they stand there, (z, y, x), and of the latter two --strides;
    --axcodes tells where these axes point to, by default SPL. --intensity is of the same plan: of
    CT, "[percentile 0.5, percentile 99.5, mean, standard deviation]" of the foreground; else
    z-score, or "nonzero z-score" where its use_mask_for_norm is true. The bundles read it from the
    checkpoint. Of Swin-UMamba's slices give these three of the 2D plan, (y, x).

    With --network nnunet, the checkpoint of a training inside nnU-Net becomes a bundle's, with its
    plan's settings; --axcodes tells where nnU-Net's axes point to, if that cannot be found.
    """
    from ..checkpoints import convert_checkpoint, load_state_dict, released_settings

    plan: dict[str, Any] = {"spacing": spacing, "patch_size": patch_size}
    plan |= {"intensity": intensity, "strides": strides}
    if network == "nnunet":
        from ..workflows import convert_nnunet

        for name, value in plan.items():
            if value is not None:
                raise InputError(
                    f"{name} is {value}; a checkpoint of nnunet has that of its own plan: allowed "
                    "is none."
                )
        _save(convert_nnunet(checkpoint, axcodes), output)
        return
    weights = OrderedDict(convert_checkpoint(load_state_dict(checkpoint), network))
    settings = released_settings(weights, network, axcodes=axcodes, **plan)
    weights.settings = settings  # type: ignore[attr-defined]  # as of a training
    _save(weights, output)
    if network == "swin_umamba" and "spacing" not in settings:
        say(
            "Nothing was said of its training's plan: inference has the bundle's own spacing, "
            "patch_size and intensity. Of slices give all three."
        )
    if network == "lightm_unet" and "axes" in settings:
        say(
            "Its training was on patches of radiographs as they are; the bundle resizes each to "
            "its image_size, 512 x 512, where masks may be worse. Give inference your radiographs' "
            'size, --image_size "[rows,columns]", to have none resized.'
        )


def join(liver: str, tumor: str, output: str) -> None:
    """Join a cascade's checkpoints, one from --stage liver, one from --stage tumor, into one."""
    from ..checkpoints import join_settings, join_stages

    weights = OrderedDict(join_stages(liver, tumor))
    weights.settings = join_settings(liver, tumor)  # type: ignore[attr-defined]  # as of a training
    _save(weights, output)


def settings(checkpoint: str, output: str | None = None) -> None:
    """Print what a checkpoint's training was told, as JSON, or write it to a config.

    The config is given after others: --config_file "['configs/train.json','settings.json']".
    """
    from ..checkpoints import check_setting, load_settings
    from ..workflows import write_settings

    found = load_settings(checkpoint)
    if not found:
        raise InputError(
            f"{checkpoint} has no settings of its training; allowed are checkpoints that a "
            "bundle's training wrote."
        )
    if output is None:
        say(as_json(found))
        return
    for id_, value in found.items():
        check_setting(id_, value)
    try:
        write_settings(output, found)
    except OSError as error:
        raise InputError(f"The settings {output} cannot be written ({error}).") from error
    say(f"{len(found)} settings are in {output}")


def export(
    format: str,
    checkpoint: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Write a trained network as "torchscript", "torch_export" or "onnx" (extra: onnx).

    Run it in the bundle's folder, or name its config_file. The settings are the checkpoint's, but
    for what is given here. The file is kept if its logits are the network's in float64. Images have
    the bundle's patch_size (--patch_size "[96,96,96]" for another); in TorchScript, any.
    """
    import time

    from ..workflows import export_network, load_for_export

    network, size, config, metadata = load_for_export(config_file, checkpoint, overrides)
    files = {"inference.json": config}
    start = time.perf_counter()
    difference = export_network(network, size, format, output, metadata, files)
    say(f"largest difference: {difference:.2g}")
    say(f"image:              {by_axis(size)}, any batch size")
    say(f"seconds:            {time.perf_counter() - start:.0f}")
    say(f"{format + ':':19} {output}")


def _save(weights: dict[str, Any], output: str) -> None:
    from ..checkpoints import save_checkpoint

    save_checkpoint(weights, output)
    say(f"{len(weights)} parameters are in {output}")
