"""Figures of what methods reached, for a report and for a paper.

Colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .results import Lesion, Results, as_number
from .tables import Paper, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_LONGEST = 26  # characters of a name in a figure
_MOST = 12  # classes in a figure: of more nobody can read it
_STRATA = (20.0, 50.0)  # mm: small, medium and large lesions
_IN_A_BIN = 5  # lesions at least, of which a median is drawn


class Picture(NamedTuple):
    """A figure as files.

    Attributes:
        name: of the files, without an ending.
        caption: what it shows.
        png, pdf: the files' contents, the same for the same figure.
    """

    name: str
    caption: str
    png: bytes
    pdf: bytes


def style() -> AbstractContextManager[None]:
    """How all figures look; inside of it they are drawn and saved."""
    from matplotlib import rc_context

    return rc_context(
        {
            "font.family": ["DejaVu Sans"],  # matplotlib's own: everywhere the same
            "font.size": 9.0,
            "axes.titlesize": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E5E5E5",
            "text.parse_math": False,  # a name may have dollars
            "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
        }
    )


def picture(name: str, caption: str, figure: Figure, dpi: int = 130) -> Picture:
    """A figure as PNG and PDF, without the time of writing in them."""
    files = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
        figure.set_layout_engine(None)  # it is laid out
        files.append(file.getvalue())
    return Picture(name, caption, *files)


def shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def draw_boxes(results: Mapping[str, Results], metric: str) -> Figure | None:
    """Box plots of a metric over cases, a panel per class; None where no case has a value."""
    first = next(iter(results.values()))
    classes = first.classes[:_MOST]
    if not any(np.isfinite(found.values[metric]).any() for found in results.values()):
        return None
    panels = _panels(len(classes), width=1.2 + 0.62 * len(results), height=3.4, share=True)
    for j, (axes, name) in enumerate(zip(panels.axes, classes, strict=True)):
        for i, found in enumerate(results.values()):
            values = found.values[metric][:, j]
            values = values[np.isfinite(values)]
            _box(axes, i, values, _colour(i))
            axes.annotate(
                f"n={len(values)}",
                (i, 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=6.5,
                color="#555555",
            )
        axes.set_xticks(range(len(results)), map(shortened, results), rotation=35, ha="right")
        axes.set_xlim(-0.6, len(results) - 0.4)
        axes.set_title(shortened(name), pad=14)
        axes.set_ylabel(titled(metric, first.unit))
        axes.grid(axis="x", visible=False)
    return panels.figure


def draw_lesions(results: Mapping[str, Results], name: str) -> Figure | None:
    """Dice of each lesion of a class against its diameter, a panel per method; missed ones have 0.

    None where no label has a lesion of that class.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    own = {
        method: [lesion for lesion in found.lesions if _counts(lesion, name)]
        for method, found in results.items()
    }
    if not any(own.values()):
        return None
    unit = next(iter(results.values())).unit
    panels = _panels(len(own), width=3.1, height=2.9, share=True)
    for i, (axes, (method, lesions)) in enumerate(zip(panels.axes, own.items(), strict=True)):
        found = np.array([lesion.kind == "found" for lesion in lesions], bool)
        diameter = np.array([lesion.diameter_mm for lesion in lesions])
        dice = np.where(found, [lesion.dice for lesion in lesions], 0.0)
        for edge in _STRATA:
            axes.axvline(edge, color="#999999", linestyle=":", linewidth=0.8)
        shape: dict[str, Any] = {"s": 14, "linewidths": 0.7, "alpha": 0.6, "clip_on": False}
        axes.scatter(diameter[found], dice[found], color=_colour(i), marker="o", **shape)
        axes.scatter(diameter[~found], dice[~found], color="#000000", marker="x", **shape)
        if bins := len(lesions) // _IN_A_BIN:
            parts = np.array_split(np.argsort(diameter, kind="stable"), min(bins, 8))
            medians = [(np.median(diameter[part]), np.median(dice[part])) for part in parts]
            axes.plot(*zip(*medians, strict=True), color="#000000", linewidth=1.2, marker=".")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(ylim=(-0.03, 1.03), xlabel=f"Diameter of the lesion, {unit}", ylabel="Dice")
        axes.set_title(f"{shortened(method)}: {found.sum()} of {len(found)} found")
    return panels.figure


def draw_volumes(results: Mapping[str, Results], name: str) -> Figure | None:
    """Bland and Altman's plot of a class's volumes, a panel per method; None without volumes."""
    j = next(iter(results.values())).classes.index(name)
    panels = None
    for i, (method, found) in enumerate(results.items()):
        ours, label = (found.values[x][:, j] for x in ("volume_ml", "reference_ml"))
        known = np.isfinite(ours) & np.isfinite(label)
        if not known.any():
            continue
        panels = panels or _panels(len(results), width=3.1, height=2.9, share=True)
        axes = panels.axes[i]
        difference = (ours - label)[known]
        means = (ours + label)[known] / 2
        axes.scatter(means, difference, s=14, alpha=0.6, color=_colour(i), linewidths=0)
        bias = difference.mean()
        lines = [(bias, "-")]
        told = f"bias {bias:+.3g} mL"
        if len(difference) > 1:
            spread = 1.96 * difference.std(ddof=1)
            lines += [(bias - spread, "--"), (bias + spread, "--")]
            told += f", limits {bias - spread:+.3g} to {bias + spread:+.3g}"
        for height, line in lines:
            axes.axhline(height, color="#000000", linestyle=line, linewidth=0.9)
        axes.axhline(0, color="#999999", linestyle=":", linewidth=0.8)
        axes.set_title(f"{shortened(method)}\n{told}", fontsize=8)
        axes.set_xlabel("Mean of prediction and label, mL")
        axes.set_ylabel("Prediction - label, mL")
    return panels.figure if panels else None


def draw_sizes(results: Mapping[str, Results], paper: Paper) -> Figure | None:
    """Mean Dice against parameters, which the markers' areas show, too: LightM-UNet's figure 1.

    The paper's own numbers are hollow. None where no method's parameters are known.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    group = _only_class(results)
    ours = {
        method: (as_number(found.costs.get("parameters")), found.mean(group, "dice"))
        for method, found in results.items()
    }
    theirs = {
        method: (costs.get("parameters", math.nan), _paper_dice(paper, method, group))
        for method, costs in paper.costs.items()
    }
    points = [
        (method, of_paper, *place)
        for of_paper, places in ((False, ours), (True, theirs))
        for method, place in places.items()
        if all(map(math.isfinite, place)) and place[0] > 0
    ]
    if not points:
        return None
    methods = list(dict.fromkeys([*results, *theirs]))
    most = max(parameters for *_, parameters, _ in points)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (method, of_paper, parameters, dice) in enumerate(sorted(points, key=lambda x: x[2])):
        colour = _colour(methods.index(method))
        area = 40 + 500 * math.sqrt(parameters / most)
        axes.scatter(
            parameters,
            dice,
            area,
            facecolors="none" if of_paper else colour,
            edgecolors=colour,
            alpha=0.85,
        )
        above = 1 if i % 2 else -1
        axes.annotate(
            f"{shortened(method)}{' (paper)' if of_paper else ''}",
            (parameters, dice),
            xytext=(0, above * (4 + math.sqrt(area) / 2)),
            textcoords="offset points",
            ha="center",
            va="bottom" if above > 0 else "top",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.18, 0.2)
    axes.set(xlabel="Parameters", ylabel="Mean Dice")
    return figure


def draw_curves(results: Mapping[str, Results]) -> Figure | None:
    """Loss and validation Dice by epoch, a line per training; None where there are no curves."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    trained = {method: found.curves for method, found in results.items() if found.curves}
    if not trained:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, column, title in zip(
        figure.subplots(1, 2),
        ("train_loss", "val_mean_dice"),
        ("Loss of training", "Mean Dice of validation"),
        strict=True,
    ):
        for method, curves in trained.items():
            for curve in curves:
                values = curve.get(column, np.full(len(curve["epoch"]), math.nan))
                known = np.isfinite(values)
                axes.plot(
                    curve["epoch"][known],
                    values[known],
                    color=_colour(list(results).index(method)),
                    linewidth=1.2 if len(curves) == 1 else 0.8,
                    alpha=1.0 if len(curves) == 1 else 0.7,
                    marker="." if known.sum() < 30 else "",
                )
        axes.set(xlabel="Epoch", title=title)
    figure.legend(
        [Line2D([], [], color=_colour(list(results).index(method))) for method in trained],
        list(map(shortened, trained)),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    return figure


class _Panels(NamedTuple):
    figure: Figure
    axes: Sequence[Axes]


def _panels(count: int, width: float, height: float, share: bool = False) -> _Panels:
    """Panels in rows of at most four, as many as fit side by side on a page."""
    from matplotlib.figure import Figure

    columns = min(count, 4, max(1, int(14 / width)))
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid.flat:
        axes.tick_params(labelbottom=True, labelleft=True)
    return _Panels(figure, list(grid.flat[:count]))


def _box(axes: Axes, place: int, values: NDArray[np.float64], colour: str) -> None:
    """A box plot with all its points, spread so that they can be seen."""
    if not len(values):
        return
    axes.boxplot(
        [values],
        positions=[place],
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
        medianprops={"color": "#000000", "linewidth": 1.4},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        manage_ticks=False,
    )
    spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.4  # as random, and always the same
    axes.scatter(place + spread, values, s=5, color=colour, alpha=0.5, linewidths=0, zorder=3)
    axes.scatter(
        [place],
        [values.mean()],
        s=22,
        color="#FFFFFF",
        edgecolors="#000000",
        marker="D",
        linewidths=0.8,
        zorder=4,
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _counts(lesion: Lesion, name: str) -> bool:
    return lesion.name == name and lesion.kind != "false" and lesion.diameter_mm > 0


def _only_class(results: Mapping[str, Results]) -> str:
    """The class of which the mean Dice is, or "mean" of several."""
    classes = next(iter(results.values())).classes
    return classes[0] if len(classes) == 1 else "mean"


def _paper_dice(paper: Paper, method: str, group: str) -> float:
    numbers = paper.metrics.get(method, {})
    mean, _ = numbers.get((group, "dice"), numbers.get(("mean", "dice"), (math.nan, math.nan)))
    return mean
