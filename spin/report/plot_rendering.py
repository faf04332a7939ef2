"""Render plots with matplotlib: as SVG in light or dark colours, or in a grid as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spin.run_dir.files import write_atomically

CHARACTER_WIDTH = 0.09
"""Width of a character of a label in inches; a digit at 10 points has 0.088."""

LABEL_HEIGHT = 0.2
"""Height of a line of text at 10 points, with its distance to the next one, in inches."""

LABEL_MARGIN = 0.15
"""Inches on both sides of the labels of the vertical axis together."""

BOTTOM_MARGIN, TOP_MARGIN, RIGHT_MARGIN = 0.52, 0.28, 0.2
"""Inches for the labels and the name of the horizontal axis, for a title, and for half a label."""

LEGEND_COLUMNS, LEGEND_ROW = 4, 0.3
"""Entries of a legend beside each other, and inches of each of its rows."""


@dataclass(frozen=True)
class Palette:
    """The colours of one rendering. The style sheet of the page has the same palettes."""

    ink: str
    """Text and labels."""
    faint: str
    """Axes and grid."""
    paper: str
    """The background of the page and of a PNG; an SVG is transparent."""
    series: tuple[str, ...]
    """One colour for each line; the first follows the last."""


LIGHT = Palette(
    ink="#1d2129",
    faint="#9aa1ab",
    paper="#fefefe",
    series=("#0b62a8", "#c2501b", "#1a7a4c", "#8145a0", "#946200", "#b3265f", "#3b6f7d", "#6b5b4b"),
)

DARK = Palette(
    ink="#e8eaee",
    faint="#6f7883",
    paper="#15181d",
    series=("#6db3f2", "#ff9f6e", "#5fd39a", "#cda0e6", "#e5b84b", "#f58bb4", "#86c5d6", "#c9b49e"),
)


@dataclass(frozen=True)
class Plot:
    """A plot, and what it shows in words for readers who cannot see it."""

    title: str
    description: str
    draw: Callable[[Axes, Palette], None]


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    label: str
    colour: int
    """Index into `Palette.series`."""
    dashed: bool = False


@dataclass(frozen=True)
class Cell:
    """The rectangle of a figure that a plot and its labels have, in inches from the lower left."""

    left: float
    bottom: float
    width: float
    height: float

    def place_axes(self, figure: Figure, left_margin: float) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of the axes, as shares of the figure."""
        width, height = figure.get_size_inches()
        return (
            (self.left + left_margin) / width,
            (self.bottom + BOTTOM_MARGIN) / height,
            (self.width - left_margin - RIGHT_MARGIN) / width,
            (self.height - BOTTOM_MARGIN - TOP_MARGIN) / height,
        )


def render_svg(plot: Plot, size: tuple[float, float]) -> tuple[str, str]:
    """Return the plot as an SVG document, in light and in dark colours.

    Args:
        plot: The plot.
        size: Width and height in inches.
    """
    out = io.StringIO()
    with matplotlib.rc_context(_style(LIGHT)):
        figure = Figure(figsize=size)
        draw_in_cells(figure, [plot], [Cell(0, 0, *size)])
        # Without a date, equal runs give equal pages. `savefig` would draw everything twice.
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    light = out.getvalue()
    return light, darken(light)


def darken(svg: str) -> str:
    """Return an SVG document in the colours of DARK in place of those of LIGHT.

    To draw it a second time would take a hundred times as long.
    """
    dark_of = dict(zip(_list_colours(LIGHT), _list_colours(DARK), strict=True))

    def replace_colour(match: re.Match[str]) -> str:
        colour = match[2]
        return match[1] + dark_of.get(colour, colour)

    return re.sub("(fill: |stroke: )(#[0-9a-f]{6})", replace_colour, svg)


def _list_colours(palette: Palette) -> list[str]:
    return [palette.ink, palette.faint, palette.paper, *palette.series]


def write_png(
    path: Path,
    plots: Sequence[Plot],
    legend: Sequence[LegendEntry],
    size: tuple[float, float] = (4.2, 2.9),
    columns: int = 3,
) -> None:
    """Write the plots as one grid under a common legend. `size`: inches of one plot."""
    columns = min(columns, len(plots))
    rows = math.ceil(len(plots) / columns)
    legend_height = LEGEND_ROW * math.ceil(len(legend) / LEGEND_COLUMNS)
    # The first plots are in the row under the legend.
    cells = []
    for number in range(len(plots)):
        row, column = divmod(number, columns)
        cells.append(Cell(size[0] * column, size[1] * (rows - 1 - row), *size))
    with matplotlib.rc_context(_style(LIGHT)):
        total = (size[0] * columns, size[1] * rows + legend_height)
        figure = Figure(figsize=total, dpi=110, facecolor=LIGHT.paper)
        for axes, plot in zip(draw_in_cells(figure, plots, cells), plots, strict=True):
            axes.set_title(plot.title, fontsize=10, y=1.02)
        _add_legend(figure, legend)
        canvas = FigureCanvasAgg(figure)
        # Level 1 takes a quarter of the time of the default one.
        write_atomically(path, lambda temporary: canvas.print_png(temporary, pil_kwargs={"compress_level": 1}))


def draw_in_cells(figure: Figure, plots: Sequence[Plot], cells: Sequence[Cell]) -> list[Axes]:
    """Draw each plot in its cell, in light colours, with equal margins that its labels fit in.

    To let matplotlib place axes, labels and titles, which measures every text, takes longer than to
    draw the plots.
    """
    drawn = []
    for plot, cell in zip(plots, cells, strict=True):
        # The height first: the number of labels depends on it.
        axes = figure.add_axes(cell.place_axes(figure, LABEL_MARGIN))
        plot.draw(axes, LIGHT)
        drawn.append(axes)
    left = max(measure_labels(axes) for axes in drawn)
    for axes, cell in zip(drawn, cells, strict=True):
        axes.set_position(cell.place_axes(figure, left))
    return drawn


def measure_labels(axes: Axes) -> float:
    """Return the inches that the labels of the vertical axis take, at most."""
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    longest = max((len(label) for label in labels), default=0)
    inches = LABEL_MARGIN + CHARACTER_WIDTH * longest
    if axes.get_ylabel():
        inches += LABEL_HEIGHT
    return inches


def _add_legend(figure: Figure, legend: Sequence[LegendEntry]) -> None:
    """Add one legend for all plots of the grid above them, if it has entries."""
    if not legend:
        return
    # Dashed lines are drawn thinner, so that their gaps are seen.
    handles = []
    for entry in legend:
        colour = LIGHT.series[entry.colour]
        if entry.dashed:
            handles.append(Line2D([], [], color=colour, linestyle="--", linewidth=2))
        else:
            handles.append(Line2D([], [], color=colour, linestyle="-", linewidth=3))
    # matplotlib leaves out a label that begins with an underscore, hence the space.
    labels = [f" {entry.label}" for entry in legend]
    columns = min(LEGEND_COLUMNS, len(legend))
    figure.legend(handles, labels, loc="upper left", ncols=columns, frameon=False, fontsize=10)


def _style(palette: Palette) -> dict[str, Any]:
    """Return matplotlib's settings for one palette."""
    return {
        # The name of a run may contain "$".
        "text.parse_math": False,
        # Text stays text: the file is smaller than with outlines.
        "svg.fonttype": "none",
        # A fixed salt makes matplotlib's ids, and so the page, reproducible.
        "svg.hashsalt": "spin",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.faint,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": palette.faint,
        "grid.alpha": 0.3,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "figure.facecolor": "none",
    }
