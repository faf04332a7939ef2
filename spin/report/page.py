"""Write `spin report`: one HTML page about one or several runs, and its plots as PNG files.

Texts of a run (prompts, answers, names, settings) reach the page only through Jinja's escaping, or
as JSON that the script writes into text nodes. Plots are embedded as images, so that an SVG cannot
run a script. The content security policy of the page allows no other script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spin.errors import ConfigError
from spin.report.answers import list_answers
from spin.report.figures import HEADLINES, list_metrics, list_speeds, make_legend, make_lines, plot_metrics, plot_speeds
from spin.report.judge_table import TITLE, JudgeTable, make_judge_table
from spin.report.metric_titles import title_of
from spin.report.plot_rendering import DARK, LIGHT, Plot, render_svg, write_png
from spin.report.reward_section import list_reward_models, plot_reliability
from spin.report.run_folders import common_folder, name_runs, open_runs
from spin.report.run_report import RunReport, collect
from spin.report.timeline import list_rows, list_stage_kinds, make_stage_legend, plot_timeline
from spin.report.training_curves import plot_training, plot_warmup
from spin.run_dir.files import write_text

PLOT_SIZE = (4.2, 2.8)
"""Width and height of a plot in the page, in inches."""

TIMELINE_WIDTHS = (11.0, 4.2)
"""Width of the time line in a wide and in a narrow window, in inches."""

NARROW = "(max-width: 700px)"
"""Media query of a narrow window; report.css has the same limit."""


@dataclass(frozen=True)
class Image:
    """A plot as the page embeds it: one SVG for each combination of colours and width."""

    title: str
    alt: str
    default: str
    """Data URI of the light rendering."""
    sources: list[tuple[str, str]]
    """Other renderings: media query and data URI. The browser takes the first that applies."""


def write_report(run_dirs: list[str], to: str | None) -> None:
    """Write the page and its plots, and print their paths.

    Args:
        run_dirs: run directories; a folder of runs stands for the runs in it.
        to: the page; None: report.html in the run's directory, or in the runs' common folder.

    Raises ConfigError when a folder holds no run, or `to` is not the name of an .html file.
    """
    # Where the page goes.
    stores = open_runs(run_dirs)
    folders = [store.root for store in stores]
    page = common_folder(folders) / "report.html"
    if to:
        page = Path(to)
    if page.is_dir() or page.suffix not in (".html", ".htm"):
        raise ConfigError(f"to={to}: expected the name of an .html file")

    # Read the runs, then write the page, and its plots in a folder beside it.
    runs = []
    for store, name in zip(stores, name_runs(stores), strict=True):
        runs.append(collect(store, name))
    for run in runs:
        for warning in run.warnings:
            print(warning)
    text = render_page(runs)
    write_text(page, text)
    folder = page.with_suffix("")
    write_plots(runs, folder)
    # A store publishes only files in its own folder: the page of a single run.
    for store in stores:
        store.publish(page)
        store.publish(folder)
    print(f"{page} ({len(text.encode()) / 1024:,.0f} kB); its plots as PNG files in {folder}")


def render_page(runs: Sequence[RunReport]) -> str:
    """Return the page of these runs as HTML."""
    # Everything of a run is escaped. An unknown name in a template is an error, not an empty text.
    environment = Environment(
        loader=PackageLoader("spin.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, setting=format_setting, titled=title_of, breakable=make_breakable)
    style = environment.get_template("report.css").render(light=LIGHT, dark=DARK)
    script = environment.get_template("report.js").render()

    # The browser runs only the script with this digest, and loads nothing from elsewhere.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html").render(
        runs=runs,
        metrics=list_metrics(runs),
        speeds=list_speeds(runs),
        headlines=HEADLINES,
        kinds=list_stage_kinds(runs),
        legend=make_legend(make_lines(runs)),
        stage_legend=make_stage_legend(runs),
        metric_plots=embed_plots(plot_metrics(runs)),
        training_plots=embed_plots(plot_training(runs)),
        warmup_plots=embed_plots(plot_warmup(runs)),
        speed_plots=embed_plots(plot_speeds(runs)),
        judges=list_judges(runs),
        judge_note=TITLE,
        reward_models=list_reward_models(runs),
        reliability_plots=embed_plots(plot_reliability(runs)),
        timelines=[embed_timeline(run) for run in runs if run.spans],
        settings=list_settings(runs),
        answers={"runs": list_answers(runs)},
        style=Markup(style),
        script=Markup(script),
        policy=policy,
    )


def embed_plots(plots: Sequence[Plot]) -> list[Image]:
    """Return the plots as images in light and in dark colours."""
    images = []
    for plot in plots:
        light, dark = _render(plot, PLOT_SIZE)
        images.append(Image(plot.title, _alt_text(plot), light, [(_in_dark(), dark)]))
    return images


def embed_timeline(run: RunReport) -> Image:
    """Return the time line of a run as an image, light and dark, for a wide and a narrow window."""
    plot = plot_timeline(run)
    rows = len(list_rows(run.spans))
    # 0.36 inches for each row, 0.9 for the axis and its label.
    height = 0.9 + 0.36 * rows
    wide_light, wide_dark = _render(plot, (TIMELINE_WIDTHS[0], height))
    narrow_light, narrow_dark = _render(plot, (TIMELINE_WIDTHS[1], height))
    # The browser takes the first source that applies, so the one with two conditions is first.
    sources = [
        (_in_dark(NARROW), narrow_dark),
        (NARROW, narrow_light),
        (_in_dark(), wide_dark),
    ]
    return Image(plot.title, _alt_text(plot), wide_light, sources)


def _in_dark(*queries: str) -> str:
    """Return the media query of a dark page under which the other queries hold too."""
    return " and ".join([*queries, "(prefers-color-scheme: dark)"])


def _alt_text(plot: Plot) -> str:
    return f"{plot.title}. {plot.description}"


def _render(plot: Plot, size: tuple[float, float]) -> tuple[str, str]:
    """Return the plot as two URIs that hold the images, in light and in dark colours."""
    light, dark = render_svg(plot, size)
    return _data_uri(light), _data_uri(dark)


def _data_uri(svg: str) -> str:
    encoded = base64.b64encode(svg.encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def list_settings(runs: Sequence[RunReport]) -> list[tuple[str, list[Any]]]:
    """Return every setting by name, with its value in each run, or None if it is not set there."""
    keys: set[str] = set()
    for run in runs:
        keys.update(run.config)
    settings = []
    for key in sorted(keys):
        settings.append((key, [run.config.get(key) for run in runs]))
    return settings


def list_judges(runs: Sequence[RunReport]) -> list[tuple[str, JudgeTable]]:
    """Return the name of each run with a judge, and the table of its judge."""
    tables = []
    for run in runs:
        table = make_judge_table({policy.label: policy.judge for policy in run.policies})
        if table is not None:
            tables.append((run.name, table))
    return tables


def write_plots(runs: Sequence[RunReport], folder: Path) -> None:
    """Write metrics.png, training.png and so on, each if there is a plot for it."""
    legend = make_legend(make_lines(runs))
    grids = {
        "metrics": plot_metrics(runs),
        "training": plot_training(runs),
        "warmup": plot_warmup(runs),
        "speed": plot_speeds(runs),
    }
    for name, plots in grids.items():
        if plots:
            write_png(folder / f"{name}.png", plots, legend)
    timelines = [plot_timeline(run) for run in runs if run.spans]
    reliability = plot_reliability(runs)
    if reliability:
        write_png(folder / "reward_model.png", reliability, [])
    if timelines:
        write_png(folder / "time.png", timelines, make_stage_legend(runs), size=(8.6, 3.0), columns=1)


def format_number(value: float | None) -> str:
    """Return a float with three decimals below 10, one below 1000, else none; a count whole."""
    if value is None or not math.isfinite(value):
        return "–"
    # Counts have no decimals, however small they are.
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}"


def make_breakable(text: str) -> Markup:
    """Return a text, escaped, in which a line may break after each slash of a path."""
    return Markup(str(escape(text)).replace("/", "/<wbr>"))


def format_setting(value: Any) -> str:
    """Return a setting as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
