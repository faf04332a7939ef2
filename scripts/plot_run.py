"""Held-out exact match and NLL over the iterations of one or more runs, as one PNG: python scripts/plot_run.py OUT.png RUN_DIR [RUN_DIR …]"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(out: str, *run_dirs: str) -> None:
    """Reads each run's benchmark.json files; the start stands at -1."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), constrained_layout=True)
    panels = [("exact_match_sampled", "exact match, sampled"), ("exact_match_greedy", "exact match, greedy"), ("nll", "NLL of the truth, nats a token")]
    for run_dir in map(Path, run_dirs):
        files = [run_dir / "start" / "benchmark.json", *sorted(run_dir.glob("iterations/*/benchmark.json"))]
        figures = [json.loads(file.read_text()) for file in files]
        for axis, (key, _) in zip(axes, panels, strict=True):
            axis.plot(range(-1, len(figures) - 1), [values[key] for values in figures], marker="o", label=run_dir.name)
    for axis, (_, title) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration (-1: start)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
