"""How a picture of the report becomes SVG inside the page, in the colours of its style sheet, or stands in a grid of a PNG."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spin.run_dir.files import write_atomically

INK, FAINT, PAPER = "#1d2129", "#9aa1ab", "#fefefe"


SERIES = ("#0b62a8", "#c2501b", "#1a7a4c", "#8145a0", "#946200", "#b3265f", "#3b6f7d", "#6b5b4b")
"""One colour a series; they start again after the last."""


VARIABLES = {INK: "--ink", FAINT: "--faint", **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)}}
"""The style sheet's name of each colour: the page has another set for the dark."""


STYLE = {
    "text.parse_math": False,  # a run may be called $x$
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "spin",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
}


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Plot:
    """A picture with what it shows in words, for those who do not see it."""

    title: str
    text: str
    draw: Callable[[Axes], None]


def svg(picture: Plot, size: tuple[float, float], number: int) -> str:
    """The picture as an <svg> element whose colours are the style sheet's variables; `size` in inches, `number` sets its ids apart from those of the others."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        picture.draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(out.getvalue())
    for child in [child for child in root if child.tag == f"{{{SVG}}}metadata"]:
        root.remove(child)
    for element in root.iter():
        for sheet in [child for child in element if child.tag == f"{{{SVG}}}style"]:  # it would hold for the whole page
            element.remove(sheet)
        for name, value in element.items():
            if name == "id":
                element.set(name, f"p{number}-{value}")
            elif name == f"{{{XLINK}}}href":
                element.set("href", value.replace("#", f"#p{number}-", 1))
                del element.attrib[name]
            else:
                element.set(name, re.sub(r"#[0-9a-f]{6}\b", _variable, value).replace("url(#", f"url(#p{number}-"))
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-label", f"{picture.title}. {picture.text}")
    return ElementTree.tostring(root, encoding="unicode")


def _variable(found: re.Match[str]) -> str:
    return f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0]


def png(
    path: Path,
    pictures: Sequence[Plot],
    legend: Sequence[tuple[str, str, str]],
    size: tuple[float, float] = (4.2, 2.9),
    columns: int = 3,
) -> None:
    """Write the pictures as one grid, by rename; `legend`: label, colour and line style of each entry."""
    columns = min(columns, len(pictures))
    height = math.ceil(len(pictures) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * height + 0.35), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(height, columns, squeeze=False).flat
        for axes, picture in itertools.zip_longest(grid, pictures):
            if picture is None:
                axes.set_visible(False)
                continue
            picture.draw(axes)
            axes.set_title(picture.title, fontsize=10)
        handles = [
            Line2D([], [], color=colour, linestyle=style, linewidth=3 if style == "-" else 2)
            for _, colour, style in legend
        ]
        # A label that begins with an underscore would be left out.
        figure.legend(
            handles,
            [f" {label}" for label, _, _ in legend],
            loc="outside upper left",
            ncols=min(4, len(legend)),
            frameon=False,
            fontsize=10,
        )
        FigureCanvasAgg(figure)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
