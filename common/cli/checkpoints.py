"""Checkpoints, and what is written of them."""

from __future__ import annotations

from typing import Any

from ..errors import by_axis
from .output import say


def convert(checkpoint: str, network: str, output: str) -> None:
    """Rename a checkpoint of a paper's released code for the network of that name here."""
    from ..checkpoints import convert_checkpoint, load_state_dict

    weights = convert_checkpoint(load_state_dict(checkpoint), network)
    _save(weights, output)
    if any(x.ndim == 5 for x in weights.values()):
        say("Its axes are nnU-Net's: give --axcodes SPL, and spacing and patch_size in that order.")


def join(liver: str, tumor: str, output: str) -> None:
    """Join a cascade's checkpoints, one from --stage liver, one from --stage tumor, into one."""
    from ..checkpoints import join_stages

    _save(join_stages(liver, tumor), output)


def export(
    format: str,
    checkpoint: str,
    output: str,
    config_file: str = "configs/inference.json",
    **overrides: Any,
) -> None:
    """Write a trained network as "torchscript", "torch_export" or "onnx" (extra: onnx).

    Run it in the bundle's folder, or name its config_file; what the training changed there has to
    be changed here too. The file is kept if its logits are the network's in float64. Images have
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
