"""`spin report`: one self-contained HTML page about one or several runs, and its pictures as PNG beside it.

Whatever comes out of a run (texts, names, settings) reaches the page through Jinja's escaping, or as JSON that the script puts into text nodes; the
page's own policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spin.errors import ConfigError
from spin.report.figures import (
    COLOURS,
    HEADLINES,
    TITLES,
    figure_pictures,
    lines_of,
    speed_names,
    speed_pictures,
    start_pictures,
    timeline,
    title_of,
    training_pictures,
)
from spin.report.plots import SERIES, Plot, png, svg
from spin.report.run_report import RunReport, collect
from spin.run_dir.files import write_text
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore, open_store

SMALL, WIDE, NARROW = (4.2, 2.8), (11, 0.36), (4.2, 0.36)
"""Sizes in inches; those of the time line have the height of a row."""


def write_report(run_dir: Any, to: str | None) -> None:
    """Write the page and its pictures, and say where. Raises ConfigError when a folder holds no run, or `to` is no file name."""
    stores = open_runs(run_dir)
    folders = [store.root for store in stores]
    page = Path(to) if to else common_folder(folders) / "report.html"
    if page.is_dir() or page.suffix not in (".html", ".htm"):
        raise ConfigError(f"to={to}: expected the name of an .html file")
    runs = [collect(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
    text = render(runs)
    write_text(page, text)
    folder = page.with_suffix("")
    write_pngs(runs, folder)
    for store in stores:  # a store takes what lies in its own folder: the page of a single run
        store.publish(page)
        store.publish(folder)
    print(f"{page} ({len(text.encode()) / 1024:,.0f} kB); its pictures as PNG in {folder}")


def open_runs(run_dir: Any) -> list[RunStore]:
    """The run directories that are meant; a folder that holds no run itself, but runs, stands for these in the order of their names."""
    given = run_dir if isinstance(run_dir, list) else [run_dir]
    found: list[RunStore] = []
    for one in given:
        store = open_store(str(one))
        inner: list[Path] = []
        if not RunLayout(store.root).ledger.exists():
            inner = sorted(path.parent for path in store.root.glob("*/ledger.jsonl"))
        found += [RunStore(folder) for folder in inner] or [store]
    if not found:
        raise ConfigError("run_dir=[]: expected a run directory, or several")
    return list(dict.fromkeys(found))


def common_folder(folders: list[Path]) -> Path:
    """The only run's directory, or the folder that several have in common."""
    return (
        folders[0]
        if len(folders) == 1
        else Path(os.path.relpath(os.path.commonpath([folder.resolve() for folder in folders])))
    )


def names_of(folders: list[Path]) -> list[str]:
    """As short as tells the runs apart: the last part of the path, or the path from the folder that they have in common."""
    whole = [folder.resolve() for folder in folders]
    short = [folder.name for folder in whole]
    if len(set(short)) == len(short):
        return short
    return [str(folder.relative_to(os.path.commonpath(whole))) for folder in whole]


def render(runs: list[RunReport]) -> str:
    """The page of these runs as HTML."""
    environment = Environment(
        loader=PackageLoader("spin.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, setting=setting, titled=title_of)
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    numbers = iter(range(1_000_000))

    def drawn(pictures: list[Plot]) -> list[tuple[str, Markup]]:
        return [(picture.title, Markup(svg(picture, SMALL, next(numbers)))) for picture in pictures]

    def drawn_time(run: RunReport) -> list[Markup]:
        height = 0.9 + len({span.policy for span in run.spans}) * WIDE[1]
        return [Markup(svg(timeline(run), (width, height), next(numbers))) for width, _ in (WIDE, NARROW)]

    return environment.get_template("report.html").render(
        runs=runs,
        figures=[
            name
            for name in [
                *TITLES,
                *sorted({name for run in runs for policy in run.policies for name in policy.figures} - TITLES.keys()),
            ]
            if has(runs, name)
        ],
        headlines=HEADLINES,
        kinds=COLOURS,
        speeds=speed_names(runs),
        colours={colour: index for index, colour in enumerate(SERIES)},
        lines=lines_of(runs),
        figure_pictures=drawn(figure_pictures(runs)),
        training_pictures=drawn(training_pictures(runs)),
        start_pictures=drawn(start_pictures(runs)),
        speed_pictures=drawn(speed_pictures(runs)),
        timelines=[(run.name, drawn_time(run)) for run in runs if run.spans],
        settings=[
            (key, [run.config.get(key) for run in runs]) for key in sorted({key for run in runs for key in run.config})
        ],
        answers={"runs": [answers_of(run) for run in runs if any(policy.answers for policy in run.policies)]},
        style=Markup(environment.get_template("report.css").render()),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
    )


def has(runs: list[RunReport], name: str) -> bool:
    """Whether any policy has this figure."""
    return any(name in policy.figures for run in runs for policy in run.policies)


def answers_of(run: RunReport) -> dict[str, Any]:
    """The held-out answers of a run for the script: each text once, rows refer to it by number. A row is [greedy, right, sampled, right]."""
    texts: dict[str, int] = {}
    prompts: dict[int, list[int]] = {}
    columns = []
    for policy in run.policies:
        if not (answers := policy.answers):
            continue
        rows = {}
        for prompt_id, prompt, real, greedy, greedy_right, sampled, sampled_right in zip(
            *answers.values(), strict=True
        ):
            prompts.setdefault(prompt_id, [texts.setdefault(text, len(texts)) for text in (prompt, real)])
            rows[prompt_id] = [
                texts.setdefault(greedy, len(texts)),
                int(greedy_right),
                texts.setdefault(sampled, len(texts)),
                int(sampled_right),
            ]
        columns.append((policy, rows))
    order = sorted(prompts)
    policies = [
        {"label": policy.label, "baseline": policy.baseline, "rows": [rows.get(prompt_id) for prompt_id in order]}
        for policy, rows in columns
    ]
    return {
        "name": run.name,
        "texts": list(texts),
        "prompts": [[prompt_id, *prompts[prompt_id]] for prompt_id in order],
        "policies": policies,
    }


def write_pngs(runs: list[RunReport], folder: Path) -> None:
    """figures.png, training.png, warmup.png, speed.png and time.png, as far as there is something to draw."""
    legend = [(line.label, line.colour, "--" if line.dashed else "-") for line in lines_of(runs)]
    sets = {
        "figures": figure_pictures,
        "training": training_pictures,
        "warmup": start_pictures,
        "speed": speed_pictures,
    }
    for name, make in sets.items():
        if pictures := make(runs):
            png(folder / f"{name}.png", pictures, legend)
    if times := [timeline(run) for run in runs if run.spans]:
        png(folder / "time.png", times, [(kind, colour, "-") for kind, colour in COLOURS.items()], (8.6, 3.0), 1)


def figure(value: float | None) -> str:
    """A number as a table shows it."""
    if value is None or not math.isfinite(value):
        return "–"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000 or value == int(value) and abs(value) > 1
        else f"{value:.3f}"
        if abs(value) < 10
        else f"{value:.1f}"
    )


def setting(value: Any) -> str:
    """A setting as it would be written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
