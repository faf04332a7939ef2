"""Where the plots of the report are placed, so that labels fit, and which labels they have."""

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spin.report.figures import choose_labels
from spin.report.plot_rendering import LABEL_MARGIN, Cell, Palette, Plot, draw_in_cells, measure_labels


def draw_long_labels(axes: Axes, palette: Palette) -> None:
    axes.set_yticks([0, 1], ["start", "a reward model's name"])
    axes.set_xlabel("optimizer step")


def draw_numbers(axes: Axes, palette: Palette) -> None:
    axes.plot([0, 1], [0.00011, 0.00012])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share")


@pytest.mark.parametrize("draw", [draw_long_labels, draw_numbers])
def test_all_labels_are_inside_the_figure(draw: object) -> None:
    figure = Figure(figsize=(4.2, 2.8))
    assert callable(draw)
    [axes] = draw_in_cells(figure, [Plot("title", "", draw)], [Cell(0, 0, 4.2, 2.8)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    taken = axes.get_tightbbox(canvas.get_renderer())
    assert taken is not None
    assert taken.x0 >= 0
    assert taken.y0 >= 0
    assert taken.x1 <= figure.bbox.x1
    assert taken.y1 <= figure.bbox.y1


def test_plots_of_a_grid_have_the_margin_of_the_longest_label() -> None:
    figure = Figure(figsize=(8.0, 3.0))
    cells = [Cell(0, 0, 4, 3), Cell(4, 0, 4, 3)]
    short, long = draw_in_cells(figure, [Plot("", "", draw_numbers), Plot("", "", draw_long_labels)], cells)
    # 21 characters of 0.09 inches.
    margin = LABEL_MARGIN + 0.09 * 21
    assert measure_labels(long) == pytest.approx(margin)
    assert measure_labels(short) < margin
    assert short.get_position().x0 == pytest.approx(margin / 8)
    assert long.get_position().x0 == pytest.approx((4 + margin) / 8)


def test_at_most_eight_iterations_are_written_under_a_plot() -> None:
    assert choose_labels(0) == [0]
    assert choose_labels(7) == [0, 1, 2, 3, 4, 5, 6, 7]
    # The label of the start, at -1, leaves no room for that of iteration 0.
    assert choose_labels(9) == [2, 4, 6, 8]
    assert choose_labels(39) == [5, 10, 15, 20, 25, 30, 35]
    assert choose_labels(199) == [50, 100, 150]
