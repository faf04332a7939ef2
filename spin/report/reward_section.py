"""What the page says of the reward model of each run: its figures and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from spin.report.plot_rendering import Palette, Plot
from spin.report.reward_figures import list_figures
from spin.report.run_report import RunReport


def list_reward_models(runs: Sequence[RunReport]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the name of each reward model of each run, and its figures as texts."""
    found = []
    for run in runs:
        for label, figures in run.reward_models.items():
            name = run.name
            if len(run.reward_models) > 1:
                name = f"{run.name}, {label}"
            found.append((name, list_figures(figures)))
    return found


def plot_reliability(runs: Sequence[RunReport]) -> list[Plot]:
    """Return the reliability diagram of the newest reward model of each run."""
    plots = []
    for run in runs:
        with_pairs = [figures["reliability"] for figures in run.reward_models.values() if figures["reliability"]]
        if with_pairs:
            plots.append(make_diagram(f"Calibration: {run.name}", with_pairs[-1]))
    return plots


def make_diagram(title: str, bins: Sequence[dict[str, Any]]) -> Plot:
    """Return the diagram of the accuracy in each bin of the confidence."""

    def draw(axes: Axes, palette: Palette) -> None:
        # On the diagonal, the model is as often right as it says.
        axes.plot([0.5, 1], [0.5, 1], color=palette.faint, linestyle="--", linewidth=1)
        confidences = [entry["confidence"] for entry in bins]
        accuracies = [entry["accuracy"] for entry in bins]
        axes.plot(confidences, accuracies, color=palette.series[0], linewidth=2, marker="o", markersize=4)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("confidence in its own choice")
        axes.set_ylabel("share of right choices")

    points = []
    for entry in bins:
        points.append(f"{entry['accuracy']:.2f} at {entry['confidence']:.2f} ({entry['pairs']} pairs)")
    return Plot(title, f"Share of right choices by confidence: {', '.join(points)}.", draw)
