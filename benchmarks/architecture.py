"""Draw the network of each bundle into its docs/architecture.png.

    python -W ignore -m benchmarks.architecture [--only liver_ct_lightm_unet_segmentation]

An image of the bundle's patch goes through the network that its train.json builds, on torch's meta
device, where nothing is computed. What is drawn was seen on the way: the map that each stage gives,
and whose maps it takes. What a stage is made of, its modules say; `STAGES` says which modules are
stages. The file has all of it as text, too, which the tests compare with the network.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from common import networks
from common.blocks import (
    SS2D,
    Codebook,
    Mamba,
    PatchExpanding,
    ResidualBlock,
    SelfAttention,
    UNETRBlock,
)
from common.cli.output import say, table
from common.errors import InputError
from common.evaluation.figures import style
from common.files import writing
from common.networks import codebook_mamba_unet, elanres_msca_unet, lcmambanet, lightm_unet
from common.networks.mambaclinix import HGCN
from common.networks.segmamba import SpatialConv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUNDLES = Path(__file__).parents[1] / "bundles"
FIGURE = "architecture.png"
TEXT = "Stages"  # what the file calls its text
IMAGE = "image"

# Networks, and which of their modules are stages: columns of the drawing, and regular expressions
# of names. Modules of one number in one column are one stage.
STAGES: dict[type[nn.Module], dict[str, str]] = {
    networks.CodebookMambaUNet: {
        "encoder": r"encoder\.(\d+)",
        "codebook": "codebook",
        "mixer": "mixer",
        "decoder": r"decoder\.(\d+)",
        "head": "head",
    },
    networks.ELANResMSCAUNet: {
        "encoder": r"encoder\.(\d+)",
        "decoder": r"decoder\.(\d+)",
        "head": r"heads\.(\d+)",
    },
    networks.LCMambaNet: {
        "stem": r"encoder\.patch_embedding",
        "encoder": r"encoder\.stages\.(\d+)",
        "lateral": r"laterals\.(\d+)",
        "refinement": r"coarse_head|refinements\.(\d+)",
    },
    networks.LightMUNet: {
        "stem": "stem",
        "encoder": r"encoder\.(\d+)",
        "decoder": r"decoder\.(\d+)",
        "head": "head",
    },
    networks.MambaClinix: {
        "stem": "stem",
        "encoder": r"encoder\.(\d+)",
        "bottleneck": "bottleneck",
        "decoder": r"decoder\.(\d+)",
        "head": r"heads\.(\d+)",
    },
    networks.SegMamba: {
        "encoder": r"encoder\.(\d+)",
        "bottleneck": "bottleneck",
        "decoder": r"decoder\.levels\.(\d+)",
        "final": r"decoder\.final",
        "head": "head",
    },
    networks.SwinUMamba: {
        "stem": "stem",
        "encoder": r"encoder\.(?:downs|stages)\.(\d+)",
        "decoder": r"decoder\.levels\.(\d+)",
        "final": r"decoder\.final",
        "head": r"heads\.(\d+)",
    },
    networks.UMamba: {
        "stem": "stem",
        "encoder": r"encoder\.(\d+)",
        "decoder": r"decoder\.(\d+)",
        "head": r"heads\.(\d+)",
    },
    networks.VMUNet: {
        "encoder": r"encoder\.(?:downs|stages)\.(\d+)",
        "decoder": r"decoder\.(\d+)",
        "final": "final_up",
        "head": "head",
    },
}

# Families of blocks and their colours: a stage has that of the first family that is in it.
FAMILIES = {
    "codebook": "#E3B0CC",
    "Mamba": "#9FD3F2",
    "attention": "#F3D190",
    "convolution": "#DEDEDE",
}


class Kind(NamedTuple):
    """A kind of block, as the drawing calls it.

    Attributes:
        label, family: its name, and one of `FAMILIES`.
        plain: it is told of stages that have nothing else: what resizes a map is in all.
        opened: the blocks within it are told, too.
    """

    label: str
    family: str
    plain: bool = False
    opened: bool = False


KINDS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Kind] = {
    Codebook: Kind("codebook", "codebook"),
    Mamba: Kind("Mamba", "Mamba"),
    SS2D: Kind("2D Mamba (SS2D)", "Mamba"),
    SelfAttention: Kind("self-attention", "attention"),
    lcmambanet.LiverCancerAttention: Kind("reverse attention", "attention", opened=True),
    elanres_msca_unet.MSCABlock: Kind("MSCA block", "attention"),
    elanres_msca_unet.ELANResBlock: Kind("ELANRes block", "convolution"),
    HGCN: Kind("HGCN", "convolution"),
    SpatialConv: Kind("GSC", "convolution"),
    codebook_mamba_unet.MultiScaleBlock: Kind("multi-scale block", "convolution"),
    lightm_unet.DepthwiseSeparableConv: Kind("separable convolution", "convolution"),
    (ResidualBlock, UNETRBlock): Kind("residual block", "convolution"),
    (codebook_mamba_unet.ConvUnit, elanres_msca_unet.ConvUnit): Kind("convolution", "convolution"),
    PatchExpanding: Kind("patch expansion", "convolution", plain=True),
    (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d): Kind(
        "convolution", "convolution", plain=True
    ),
}


class Stage(NamedTuple):
    """A box of the drawing.

    Attributes:
        name: of its column and its number there, or of its module.
        column: of `STAGES`.
        channels, grid: of the map that it gives.
        blocks: what it is made of, and how many of each.
        family: of `FAMILIES`, by which it is coloured; None of the image.
        inputs: the stages whose maps it takes, as they ran; all but the last are skip connections.
        in_training_alone: evaluation leaves it out.
    """

    name: str
    column: str
    channels: int
    grid: tuple[int, ...]
    blocks: dict[str, int]
    family: str | None
    inputs: tuple[str, ...]
    in_training_alone: bool


def main() -> None:
    bundles = {path.name: path for path in sorted(BUNDLES.iterdir()) if path.is_dir()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=bundles, default=list(bundles))
    options = parser.parse_args()
    rows = []
    try:
        for name in tqdm(options.only, desc="bundles"):
            stages, path = of_bundle(bundles[name]), bundles[name] / "docs" / FIGURE
            draw(stages, path)
            rows.append([name, str(len(stages)), f"{path.stat().st_size / 1000:.1f}"])
    except InputError as error:
        parser.error(str(error))
    say(table(("bundle", "boxes", "kB"), rows))


def of_bundle(bundle: Path) -> list[Stage]:
    """The stages of the network that a bundle's train.json builds, see `trace`.

    Of a cascade they are those of one of its networks, which are alike.

    Raises:
        InputError: `STAGES` does not have the network, or the networks of a cascade differ.
    """
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/train.json"))
    network = parser.get_parsed_content("network_def")
    size = parser.get_parsed_content("network_input#size")
    shape = (parser.get_parsed_content("network_input#channels"), *size)
    if not isinstance(network, networks.LiverTumourCascade):
        return trace(network, shape)
    liver, tumour = trace(network.liver, shape), trace(network.tumour, shape)
    if liver != tumour:
        raise InputError(f"The two networks of {bundle.name} differ; allowed are two that do not.")
    return liver


def trace(network: nn.Module, shape: Sequence[int]) -> list[Stage]:
    """The image, and a network's stages in the order of a pass.

    Args:
        network: it stays as it is.
        shape: of an image, (c, ...).

    Raises:
        InputError: `STAGES` does not have the network.
    """
    columns = next((names for kind, names in STAGES.items() if isinstance(network, kind)), None)
    if columns is None:
        known = ", ".join(kind.__name__ for kind in STAGES)
        raise InputError(
            f"The stages of {type(network).__name__} are not known; allowed are {known}."
        )
    network = copy.deepcopy(network).eval().to("meta")
    watched = _Pass()
    for name, module in network.named_modules():
        for column, pattern in columns.items():
            found = re.fullmatch(pattern, name)
            if found is not None and not isinstance(module, nn.Identity):
                number = found[found.lastindex] if found.lastindex else None
                title = name.rpartition(".")[2].replace("_", " ")
                watched.watch(module, title if number is None else f"{column} {number}", column)
    image = torch.empty((1, *shape), device="meta")
    watched.leave(IMAGE, IMAGE, [], image)
    with torch.no_grad(), watched:
        network(image)
        if hasattr(network, "multiscale_logits") and getattr(network, "deep_supervision", True):
            watched.in_training = True
            network.multiscale_logits(image)
    return list(watched.stages.values())


class _Pass(TorchDispatchMode):
    """A pass through a network: of which stages' maps each tensor is made, the last before it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_training = False
        self.stages: dict[str, Stage] = {}
        self._modules: dict[str, list[nn.Module]] = {}
        self._inputs: dict[str, frozenset[str]] = {}
        self._sources: dict[Tensor, frozenset[str]] = {}  # by identity; each is kept, and so its id

    def watch(self, module: nn.Module, name: str, column: str) -> None:
        """Take a module for a stage, or for a part of the stage that has this name already."""
        modules = self._modules.setdefault(name, [])
        modules.append(module)

        def enter(_: nn.Module, inputs: Any) -> None:
            own = self._of(inputs) - {name}
            self._inputs[name] = self._inputs.get(name, frozenset()) | own

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(
            lambda _, __, output: self.leave(name, column, modules, output)
        )

    def leave(self, name: str, column: str, modules: Sequence[nn.Module], output: Any) -> None:
        """Take note of what a stage gives; of several tensors the first is its map."""
        y, *others = _tensors(output)
        blocks, family = _blocks(modules)
        inputs = self._inputs.get(name, frozenset())
        known = self.stages.get(name)
        self.stages[name] = Stage(
            name,
            column,
            y.shape[1],
            tuple(y.shape[2:]),
            blocks,
            family,
            tuple(stage for stage in self.stages if stage in inputs),
            self.in_training if known is None else known.in_training_alone,
        )
        for tensor in (y, *others):
            self._sources[tensor] = frozenset({name})

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        sources = self._of((args, kwargs))
        for tensor in _tensors(output):
            self._sources[tensor] = sources
        return output

    def _of(self, value: Any) -> frozenset[str]:
        known = (self._sources.get(tensor, frozenset()) for tensor in _tensors(value))
        return frozenset().union(*known)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _blocks(modules: Sequence[nn.Module]) -> tuple[dict[str, int], str | None]:
    """How many blocks of which kinds there are in modules, and the family that they are of."""
    found = Counter(kind for module in modules for kind in _kinds(module))
    told = {kind: n for kind, n in found.items() if not kind.plain} or found
    families = {kind.family for kind in told}
    return (
        {kind.label: n for kind, n in told.items()},
        next((family for family in FAMILIES if family in families), None),
    )


def _kinds(module: nn.Module) -> Iterator[Kind]:
    """The outermost blocks in a module."""
    kind = next((kind for types, kind in KINDS.items() if isinstance(module, types)), None)
    if isinstance(module, Mamba) and module.others is not None:
        kind = Kind("Mamba in 3 orders", "Mamba")
    elif isinstance(module, HGCN):
        kind = Kind(f"HGCN of order {len(module.gated.widths)}", "convolution")
    if kind is not None:
        yield kind
    if kind is None or kind.opened:
        for child in module.children():
            yield from _kinds(child)


def as_text(stages: Sequence[Stage]) -> str:
    """What is drawn, as the figure's file has it."""
    return json.dumps([stage._asdict() for stage in stages])


# Lengths are hundredths of an inch.
_FONT = 9  # points
_LINE, _CHARACTER, _BOLD = 16, 7.4, 8.4  # of that font
_PADDING, _GAP, _MARGIN, _LEGEND = 7, 30, 10, 34
_LEAST_WIDTH = 700  # the legend's
_DPI = 150
_COLOURS = 64  # of the file: few make it small
_PATH, _SKIP = "#333333", "#0072B2"


def draw(stages: Sequence[Stage], path: Path) -> None:
    """Draw what `trace` gives: rows are grids, and columns are of `STAGES`.

    The background is white, so that it is read on dark pages, too.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    with style():
        layout = _Layout(stages)
        figure = Figure((layout.width / 100, layout.height / 100))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
        axes.axis("off")
        for grid, row in layout.rows.items():
            y = sum(layout.vertical[row]) / 2
            axes.text(_MARGIN, y, _size(grid), color="#555555", va="center", size=_FONT)
        for stage in stages:
            for source in stage.inputs:
                _arrow(axes, layout, layout.stages[source], stage)
            _box(axes, layout, stage)
        _legend(axes, stages)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    told = PngInfo()
    told.add_text(TEXT, as_text(stages), zip=True)
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(_COLOURS)
    with writing("figure", path) as partial:
        small.save(partial, "PNG", optimize=True, pnginfo=told)


def _size(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))


def _lines(stage: Stage) -> list[str]:
    """What is written in a box below its name."""
    blocks = [label if n == 1 else f"{n} x {label}" for label, n in stage.blocks.items()]
    return [*blocks, f"{stage.channels} channel{'s' * (stage.channels > 1)}"]


class _Layout:
    """Where the boxes are: from and to, of each column and of each row."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = {stage.name: stage for stage in stages}
        grids = sorted({stage.grid for stage in stages}, reverse=True)
        self.rows = {grid: row for row, grid in enumerate(grids)}
        self.columns = {name: i for i, name in enumerate(dict.fromkeys(x.column for x in stages))}
        widths, heights = [0.0] * len(self.columns), [0.0] * len(self.rows)
        self.cells: set[tuple[int, int]] = set()
        for stage in stages:
            row, column = cell = self.cell(stage)
            lines = _lines(stage)
            text = max(_BOLD * len(stage.name), *(_CHARACTER * len(line) for line in lines))
            widths[column] = max(widths[column], text + 2 * _PADDING)
            heights[row] = max(heights[row], _LINE * (len(lines) + 1) + 2 * _PADDING)
            self.cells.add(cell)
        left = 2 * _MARGIN + _CHARACTER * max(len(_size(grid)) for grid in grids)
        self.horizontal = _ranges(left, widths)
        self.vertical = _ranges(_MARGIN, heights)
        self.width = max(self.horizontal[-1][1] + _MARGIN, _LEAST_WIDTH)
        self.height = self.vertical[-1][1] + _MARGIN + _LEGEND

    def cell(self, stage: Stage) -> tuple[int, int]:
        """Its row and its column."""
        return self.rows[stage.grid], self.columns[stage.column]

    def way(self, source: Stage, target: Stage) -> list[tuple[float, float]]:
        """The corners of an arrow: straight, or across and then up or down, where that is free."""
        (row0, column0), (row1, column1) = self.cell(source), self.cell(target)
        across, down = self.horizontal[column1], self.vertical[row1]
        x0, y0 = sum(self.horizontal[column0]) / 2, sum(self.vertical[row0]) / 2
        x1, y1 = sum(across) / 2, sum(down) / 2
        to_right, to_below = column1 > column0, row1 > row0
        edge_y = down[0] if to_below else down[1]
        if column0 == column1:
            return [(x0, self.vertical[row0][to_below]), (x1, edge_y)]
        start = (self.horizontal[column0][to_right], y0)
        step = 1 if to_right else -1
        taken = {(row0, i) for i in range(column0 + step, column1 + step, step)} & self.cells
        if row0 != row1 and not taken:
            return [start, (x1, y0), (x1, edge_y)]
        return [start, (across[0] if to_right else across[1], y1)]


def _ranges(start: float, lengths: Sequence[float]) -> list[tuple[float, float]]:
    """From and to, of lengths in a row with gaps between them."""
    ranges = []
    for length in lengths:
        ranges.append((start, start + length))
        start += length + _GAP
    return ranges


def _box(axes: Axes, layout: _Layout, stage: Stage) -> None:
    from matplotlib.patches import FancyBboxPatch

    row, column = layout.cell(stage)
    (left, right), (top, bottom) = layout.horizontal[column], layout.vertical[row]
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            right - left,
            bottom - top,
            boxstyle="round,pad=0,rounding_size=5",
            facecolor="white" if stage.family is None else FAMILIES[stage.family],
            edgecolor=_PATH,
            linewidth=0.9,
            linestyle="--" if stage.in_training_alone else "-",
            zorder=2,
        )
    )
    lines = [stage.name, *_lines(stage)]
    y = (top + bottom - _LINE * (len(lines) - 1)) / 2
    for i, line in enumerate(lines):
        weight = "normal" if i else "bold"
        axes.text(
            (left + right) / 2,
            y + i * _LINE,
            line,
            ha="center",
            va="center",
            size=_FONT,
            weight=weight,
            zorder=3,
        )


def _arrow(axes: Axes, layout: _Layout, source: Stage, target: Stage) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    skip = source.name != target.inputs[-1]
    axes.add_patch(
        FancyArrowPatch(
            path=Line(layout.way(source, target)),
            arrowstyle="-|>",
            mutation_scale=9,
            color=_SKIP if skip else _PATH,
            linewidth=1.3 if skip else 1.0,
            linestyle="--" if target.in_training_alone else "-",
            zorder=1,
        )
    )


def _legend(axes: Axes, stages: Sequence[Stage]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    families = {stage.family for stage in stages}
    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor=_PATH, linewidth=0.9, label=family)
        for family, colour in FAMILIES.items()
        if family in families
    ]
    if any(len(stage.inputs) > 1 for stage in stages):
        handles.append(Line2D([], [], color=_SKIP, linewidth=1.3, label="skip connection"))
    if any(stage.in_training_alone for stage in stages):
        dashed = Line2D([], [], color=_PATH, linewidth=0.9, linestyle="--")
        dashed.set_label("in training alone")
        handles.append(dashed)
    axes.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=_FONT,
        borderaxespad=0.4,
    )


if __name__ == "__main__":
    main()
