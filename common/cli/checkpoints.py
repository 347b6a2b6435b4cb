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
    """Rename a checkpoint of a paper's released code for the network of that name.

    Of LightM-UNet and U-Mamba in 3D, MambaClinix and SegMamba the bundles have to know the nnU-Net
    plan that it was trained with, and read it from the checkpoint: give its values as they stand
    there, (z, y, x); of Swin-UMamba's slices those of the 2D plan, (y, x). With --network nnunet,
    the checkpoint of a training inside nnU-Net becomes a bundle's, with its plan's settings.

    Input:
        checkpoint: the file.
        network: lightm_unet, mambaclinix, umamba, segmamba, nnunet, or as docs say.
    Output:
        output: the file for the weights.
    The plan of its training:
        axcodes: where its axes point to, by default SPL; of nnunet by default what is found.
        spacing: as "[2.5,0.8,0.8]".
        patch_size: as "[64,128,128]".
        intensity: of CT "[percentile 0.5, 99.5, mean, deviation]"; z-score or "nonzero z-score".
        strides: three for each stage, of MambaClinix and U-Mamba.
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
    if network == "segmamba" and settings["in_channels"] == 4:
        say(
            "The release reads BraTS as T2, FLAIR, T1 and T1 with contrast, in this order; here "
            "BraTS's folders are FLAIR, T1, T1 with contrast and T2. Give inference lists of "
            "files: --datalist \"[['t2w.nii.gz','t2f.nii.gz','t1n.nii.gz','t1c.nii.gz']]\"."
        )


def join(liver: str, tumor: str, output: str) -> None:
    """Join a cascade's checkpoints, of --stage liver and of --stage tumor, into one.

    Input:
        liver: the checkpoint of the first stage.
        tumor: the checkpoint of the second.
    Output:
        output: the file for both.
    """
    from ..checkpoints import join_settings, join_stages

    weights = OrderedDict(join_stages(liver, tumor))
    weights.settings = join_settings(liver, tumor)  # type: ignore[attr-defined]  # as of a training
    _save(weights, output)


def settings(checkpoint: str, output: str | None = None) -> None:
    """Print what a checkpoint's training was told, as JSON, or write it to a config.

    The config is given after others: --config_file "['configs/train.json','settings.json']".

    Input:
        checkpoint: the file.
    Output:
        output: a file for the config; by default they are printed.
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

    The settings are the checkpoint's, but for what is given here. The file is kept if its logits
    are the network's in float64. Images have the bundle's patch_size; in TorchScript, any.

    Input:
        checkpoint: the file with the weights.
        config_file: of the bundle; this one in its folder.
        overrides: what the config may be given, such as --patch_size "[96,96,96]".
    Output:
        format: torchscript, torch_export or onnx.
        output: the file.
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
