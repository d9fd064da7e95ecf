"""Figures of training and evaluation, drawn without a display and legible at phone width."""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from prompt_pretrain.analysis import Projection
from prompt_pretrain.atomic_files import atomic_writer

# Okabe and Ito's colours, told apart with every kind of colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
OTHERS = "other classes"  # a group of this name stays in the background
_WIDTH = 5.6  # inches; narrow, so that a phone shows the letters large enough
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Curve:
    """Values over epochs or steps."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class SamplePrediction:
    """An image with its class and the best guesses of one or several prompts."""

    image: Image.Image
    label: str
    guesses: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)  # prompt -> (class, probability)


def style() -> AbstractContextManager[None]:
    """The look of all figures, as a context."""
    return matplotlib.rc_context(_STYLE)


def png_bytes(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG, without time stamp or version, so that equal figures give equal files."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(path: str | os.PathLike, figure: Figure, *, dpi: int = 150) -> None:
    """Write the figure as PNG, atomically."""
    data = png_bytes(figure, dpi=dpi)
    with atomic_writer(path) as file:
        file.write(data)


def plot_curves(curves: Sequence[Curve], *, title: str, xlabel: str, ylabel: str) -> Figure:
    """Lines with markers where there are few points; each line is named in the legend."""
    with style():
        figure = Figure(figsize=(_WIDTH, 3.6))
        axes = figure.subplots()
        for index, curve in enumerate(curves):
            marker = MARKERS[index % len(MARKERS)] if len(curve.x) <= 40 else None
            axes.plot(
                curve.x, curve.y, color=_color(index), marker=marker, markersize=5, linewidth=1.8, label=curve.name
            )
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if all(float(x).is_integer() for curve in curves for x in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(curves) > 1:
            longest = max(len(curve.name) for curve in curves)
            figure.legend(loc="outside lower center", ncols=min(len(curves), max(48 // max(longest, 1), 1)))
    return figure


def plot_grouped_bars(
    rows: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    ylabel: str = "top-1 accuracy (%)",
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Horizontal bars with their values written out: one block per row, one colour per series.

    Args:
        rows: row name → series name → value.
        errors: half the length of the whiskers, same keys; missing ones are not drawn.
    """
    num_series = max((len(values) for values in rows.values()), default=1)
    with style():
        figure = Figure(figsize=(_WIDTH, 1.1 + len(rows) * (0.22 + 0.27 * num_series)))
        axes = figure.subplots()
        grouped_bars(axes, rows, errors)
        axes.set_xlabel(ylabel)
        axes.set_title(title)
        if num_series > 1:
            figure.legend(loc="outside lower center", ncols=min(num_series, 4))
    return figure


def grouped_bars(
    axes: Axes,
    rows: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw what :func:`plot_grouped_bars` shows into existing axes."""
    series = list(dict.fromkeys(name for values in rows.values() for name in values))
    height = 0.8 / max(len(series), 1)
    largest = max((value for values in rows.values() for value in values.values()), default=1.0)
    for index, name in enumerate(series):
        at = np.arange(len(rows)) + (index - (len(series) - 1) / 2) * height
        values = np.array([values.get(name, np.nan) for values in rows.values()])
        spread = np.array([(errors or {}).get(row, {}).get(name, 0.0) for row in rows])
        whiskers = spread if spread.any() else None
        axes.barh(at, values, height * 0.92, color=_color(index), label=name, xerr=whiskers)
        for y, value, half in zip(at, values, spread, strict=True):
            if np.isfinite(value):
                axes.text(value + half + 0.012 * largest, y, f"{value:.1f}", va="center", fontsize=10)
    axes.set_yticks(np.arange(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.set_xlim(0, largest * 1.14)
    axes.grid(axis="y", visible=False)


def plot_projection(
    classes: Projection,
    class_groups: Sequence[str],
    images: Projection | None,
    image_groups: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Classes (large, framed) and images (small) in the plane, coloured by the group they belong to.

    The group :data:`OTHERS` is drawn small and grey, behind the rest.
    """
    names = [name for name in dict.fromkeys([*class_groups, *image_groups]) if name != OTHERS]
    with style():
        figure = Figure(figsize=(_WIDTH, 5.0))
        axes = figure.subplots()
        points = classes.points[[g == OTHERS for g in class_groups]]
        if len(points):
            axes.scatter(points[:, 0], points[:, 1], s=8, color="#C4C8CE", linewidths=0, label=OTHERS)
        for index, name in enumerate(names):
            color, marker = _color(index), MARKERS[index % len(MARKERS)]
            if images is not None:
                points = images.points[[g == name for g in image_groups]]
                axes.scatter(points[:, 0], points[:, 1], s=9, color=color, alpha=0.35, linewidths=0)
            points = classes.points[[g == name for g in class_groups]]
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=42,
                color=color,
                marker=marker,
                edgecolors="white",
                linewidths=0.6,
                label=name,
                zorder=3,
            )
        for axis, number in ((axes.xaxis, 0), (axes.yaxis, 1)):
            axis.set_ticklabels([])
            share = f" ({100 * classes.explained[number]:.0f}% of the variance)" if classes.explained else ""
            axis.set_label_text(f"{classes.method.upper() if classes.method == 'pca' else 't-SNE'} {number + 1}{share}")
        axes.set_title(title)
        if len(names) > 1:
            columns = 4 if max(map(len, names)) <= 9 else 3 if max(map(len, names)) <= 14 else 2
            figure.legend(loc="outside lower center", ncols=min(len(names), columns))
    return figure


def plot_samples(samples: Sequence[SamplePrediction], *, title: str, columns: int = 2) -> Figure:
    """Images with their class and each prompt's best guess: ✓ right, ✗ wrong."""
    lines = max((len(sample.guesses) for sample in samples), default=0)
    rows = -(-len(samples) // columns)
    with style():
        figure = Figure(figsize=(_WIDTH, 0.45 + rows * (0.6 + 0.45 * lines + 1.35)))
        figure.set_layout_engine("constrained", h_pad=0.14)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, sample in zip(grid.flat, samples, strict=False):
            draw_sample(axes, sample)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return figure


def draw_sample(axes: Axes, sample: SamplePrediction, *, fontsize: float = 10.5, line_width: int = 40) -> None:
    """One image with its class above and the guesses below; texts break after ``line_width`` letters."""
    axes.imshow(np.asarray(sample.image.convert("RGB")), interpolation="nearest")
    axes.set_title(textwrap.fill(sample.label, line_width), fontsize=fontsize + 0.5, loc="center", pad=4)
    for index, (prompt, guesses) in enumerate(sample.guesses.items()):
        best, probability = guesses[0]
        right = best == sample.label
        axes.annotate(
            f"{'✓' if right else '✗'} {prompt}: {100 * probability:.0f}%\n{textwrap.fill(best, line_width)}",
            (0.5, 0),
            xytext=(0, -4 - index * 3.1 * fontsize),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=fontsize,
            linespacing=1.25,
            color=COLORS[2] if right else COLORS[1],
        )


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
