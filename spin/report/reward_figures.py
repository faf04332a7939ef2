"""The figures of a reward model as text, for the console, the model card and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "accuracy": "accuracy over pairs",
    "best_of_k": "best of K found",
    "accuracy_over_subsets": "accuracy, mean over subsets",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
    "nll": "NLL per pair",
    "length_correlation": "Spearman correlation with length",
}
"""Figures of `evaluation.json` in the order in which they are shown."""


def list_figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return title and value, with a 95 % interval if there is one, of each known figure."""
    rows = []
    for name, title in TITLES.items():
        value = figures.get(name)
        if value is None:
            continue
        text = f"{value:.3f}"
        if name in figures["intervals"]:
            low, high = figures["intervals"][name]
            text += f" ({low:.3f} to {high:.3f})"
        rows.append((title, text))
    for name, subset in figures["subsets"].items():
        rows.append((f"accuracy on {name}", f"{subset['accuracy']:.3f} ({subset['prompts']} prompts)"))
    return rows


def describe_figures(figures: Mapping[str, Any]) -> str:
    """Return one line about a reward model."""
    if not figures["pairs"]:
        return f"{figures['prompts']:,} rankings, without a pair of which one answer is better"
    low, high = figures["intervals"]["accuracy"]
    return (
        f"{figures['prompts']:,} rankings, {figures['pairs']:,} pairs: accuracy {figures['accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}), best of K {figures['best_of_k']:.3f}, ECE {figures['ece']:.3f}"
    )
