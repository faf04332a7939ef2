"""The table of policy gradients and the lines of status, for few and for many iterations."""

from spin.report.rollout_table import format_figure, pick_lines
from spin.report.status import join_labels, join_latest


def test_of_many_iterations_lines_in_equal_distances_are_shown_with_the_first_and_the_last() -> None:
    rows = [[str(index)] for index in range(200)]
    shown = [int(row[0]) for row in pick_lines(rows)]
    assert len(shown) == 40
    assert shown[:3] == [0, 5, 10]
    assert shown[-1] == 199
    assert pick_lines(rows[:40]) == rows[:40]


def test_a_figure_that_an_iteration_lacks_is_a_dash() -> None:
    assert (format_figure(None, "{:.3f}"), format_figure(0.1234, "{:.1%}")) == ("-", "12.3%")


def test_labels_with_numbers_that_follow_each_other_are_one_stretch() -> None:
    assert join_labels(["start", "iteration 0", "iteration 1", "iteration 2"]) == "start, iteration 0 to 2"
    assert join_labels(["start", "iteration 0", "iteration 2", "baseline 0"]) == (
        "start, iteration 0, iteration 2, baseline 0"
    )
    assert join_labels([]) == ""


def test_of_many_texts_the_last_five_are_shown() -> None:
    texts = [f"iteration {index} reward" for index in range(7)]
    assert join_latest(texts[:5]) == "; ".join(texts[:5])
    assert join_latest(texts) == "(2 earlier ones are in spin report) " + "; ".join(texts[2:])
