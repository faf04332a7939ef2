"""The report: what it reads from run directories with known figures, and the page in a browser."""

import base64
import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes

from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import Baseline, RunConfig, to_plain
from spin.data.parquet import write_rows
from spin.data.records import HeldoutAnswer, Prompt, Sample
from spin.errors import ConfigError
from spin.report.figures import join_curves
from spin.report.page import write_report
from spin.report.plot_rendering import DARK, LIGHT, Palette, Plot, render_svg
from spin.report.run_folders import name_runs, open_runs
from spin.report.run_report import Curve, Span, collect
from spin.report.timeline import without_pauses
from spin.report.training_curves import plot_training, thin
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.remote import Remote
from spin.run_dir.store import RunStore

HOSTILE = (
    "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> "
    "$\\frac{1}{2} & 'quoted' {{ 7 * 7 }}"
)
PROMPTS = 60
"""Three pages."""


def answer(prompt_id: int, right: bool) -> HeldoutAnswer:
    """Prompt 7 is hostile, prompt 42 has a needle in its target."""
    empty = {int: 0, float: 0.0, str: "", bool: False, list[int]: []}
    fields = {
        field.name: empty[typing.get_type_hints(HeldoutAnswer)[field.name]]
        for field in dataclasses.fields(HeldoutAnswer)
    }
    texts = {
        "prompt_text": HOSTILE if prompt_id == 7 else f"Sort: {prompt_id}",
        "target_text": "Needle" if prompt_id == 42 else "ab",
    }
    own = {
        "greedy_text": "ab" if right else "ba",
        "greedy_right": right,
        "sampled_text": HOSTILE,
        "sampled_right": not right,
    }
    return HeldoutAnswer(**{**fields, **texts, **own, "prompt_id": prompt_id})  # type: ignore[arg-type]


def finished(
    layout: RunLayout, ledger: Ledger, stage: Stage, log: Callable[..., None], figures: dict[str, Any], right: int
) -> None:
    """Write two logged steps, figures, and judged answers of which the first `right` are right."""
    for step in (1, 2):
        log(
            unit=f"{stage.name}/policy",
            kind="train",
            step=step,
            steps=2,
            loss=0.7 / step,
            learning_rate=1e-5,
            **{"rewards/chosen": step - 1.0, "rewards/rejected": 1.0 - step},
        )
    ledger.append(f"{stage.name}/policy", digest="d", opponent="o", steps=2, seconds=2.0)
    stage.benchmark.parent.mkdir(parents=True, exist_ok=True)
    stage.benchmark.write_text(json.dumps(figures))
    answers = [answer(index, index < right) for index in range(PROMPTS)]
    judged = write_rows(stage.answers("judged"), HeldoutAnswer, answers)
    log(unit=f"{stage.name}/benchmark", kind="benchmark", policy=stage.name)
    ledger.append(f"{stage.name}/benchmark", sha256=file_sha256(stage.benchmark), judged=judged, seconds=3.0)


def write_run(folder: Path, baseline: bool = False) -> Path:
    """Write a start with 20 right answers and an iteration with 50 and a beta of its own."""
    feedback = FeedbackConfig()
    config = RunConfig(
        str(folder),
        1,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig(HOSTILE),
        feedback=feedback,
        objective=SpinObjective(),
        baseline=Baseline.sft if baseline else None,
    )
    layout = RunLayout(folder)
    folder.mkdir(parents=True)
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    clock = iter(range(1000, 2000, 5))

    def log(**row: Any) -> None:
        with layout.metrics.open("a") as handle:
            handle.write(json.dumps({"time": next(clock), **row}) + "\n")

    finished(
        layout,
        ledger,
        layout.start,
        log,
        {"heldout": PROMPTS, "exact_match_greedy": 0.3333, "nll": 2.0, "win_rate": None},
        20,
    )
    own = layout.iteration(0)
    own.folder.mkdir(parents=True)
    own.config.write_text(yaml.safe_dump(to_plain(dataclasses.replace(config, objective=SpinObjective(beta=0.5)))))
    intervals = {
        "intervals": {"exact_match_greedy": [0.7341, 0.9123]},
        "speed": {"seconds_train": 2.0, "peak_memory_gib_trainer": 1.25},
    }
    finished(
        layout,
        ledger,
        own,
        log,
        {"heldout": PROMPTS, "exact_match_greedy": 0.8333, "nll": 1.0, "win_rate": 0.75, **intervals},
        50,
    )
    # The samples of its first shard, and the prompts of the training set.
    samples = [Sample(0, 0, [5], "stop", -1.0, HOSTILE)]
    ledger.append("iterations/000/samples/0", sha256=write_rows(own.samples(0), Sample, samples), seconds=1.0)
    prompts = [Prompt(0, [1], [2], "stop", HOSTILE, "ab", None)]
    write_rows(layout.prompts("train"), Prompt, prompts)
    if baseline:
        finished(
            layout,
            ledger,
            Stage(folder, "baseline/000"),
            log,
            {"heldout": PROMPTS, "exact_match_greedy": 0.6, "nll": 1.5},
            36,
        )
        ledger.append("best", policy=own.name, metric="nll", value=1.0)
    return folder


def test_a_run_is_read_with_figures_intervals_times_and_what_an_iteration_changes(tmp_path: Path) -> None:
    run = collect(RunStore(write_run(tmp_path / "run", baseline=True)), "run")
    assert [policy.label for policy in run.policies] == ["start", "iteration 0", "baseline 0"]
    start, own, baseline = run.policies
    assert (
        start.metrics["exact_match_greedy"],
        own.metrics["exact_match_greedy"],
        baseline.metrics["exact_match_greedy"],
    ) == (0.3333, 0.8333, 0.6)
    assert "win_rate" not in start.metrics
    assert own.intervals == {"exact_match_greedy": (0.7341, 0.9123)}
    assert own.speed["peak_memory_gib_trainer"] == 1.25
    assert own.changes == {"objective.beta": (0.1, 0.5)}
    assert own.seconds == {"train": 2.0, "benchmark": 3.0}
    # Losses of different objectives have axes of their own.
    assert baseline.curve is not None
    assert "loss of sft" in baseline.curve.values
    assert [plot.title for plot in plot_training([run])][:2] == ["loss of spin", "loss of sft"]
    assert own.curve == Curve(
        [1, 2],
        {
            "loss of spin": [0.7, 0.35],
            "learning_rate": [1e-5, 1e-5],
            "rewards/chosen": [0.0, 1.0],
            "rewards/rejected": [0.0, -1.0],
        },
    )
    assert run.best is not None
    assert run.best["label"] == "iteration 0"
    assert [(span.kind, span.end - span.start) for span in run.spans[:2]] == [("train", 2.0), ("benchmark", 3.0)]


def test_a_run_that_is_being_trained_shows_its_steps_and_an_unfinished_stage(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(line for line in lines if "iterations/000" not in line))
    shutil.rmtree(folder / "iterations" / "000" / "heldout")
    (folder / "iterations" / "000" / "benchmark.json").unlink()
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:-1]) + rows[-1][:9])  # the last line is being written
    run = collect(RunStore(folder), "run")
    assert run.policies[1].curve is not None
    assert run.policies[1].answers is None
    assert [(span.policy, span.finished) for span in run.spans] == [
        ("start", True),
        ("start", True),
        ("iteration 0", False),
    ]
    write_report([str(folder)], None)
    assert "stopped; the same spin run command continues it" in (folder / "report.html").read_text()


def test_a_run_without_a_single_figure_still_gives_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    for part in ("start", "iterations"):
        shutil.rmtree(folder / part)
    write_report([str(folder)], None)
    assert "No benchmark yet." in (folder / "report.html").read_text()
    assert f"warning: {folder}/start/benchmark.json is gone; it is left out" in capsys.readouterr().out
    assert not (folder / "report").exists()


def test_what_a_run_holds_reaches_the_page_only_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a&b <i> $x")
    write_report([str(folder)], None)
    page = (folder / "report.html").read_text()
    assert page.count("<script") == page.count("</script") == 2
    # Every image is a plot, as data; the hostile one is not among them.
    assert (
        page.count("<img") == len(re.findall(r'<img src="data:image/svg\+xml;base64,[\w+/=]+" alt="[^"]+">', page)) > 0
    )
    assert "<i>" not in page
    assert not re.search(r'(src|srcset|href)="(?!#|data:,|data:image/svg\+xml;base64,)', page)


def test_a_hostile_name_of_a_run_is_text_on_the_page(tmp_path: Path) -> None:
    name = "<img src=x onerror=\"document.title='taken'\"> {{ 7 * 7 }} <script>"
    write_report([str(write_run(tmp_path / name)), str(write_run(tmp_path / "other"))], str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == page.count("</script") == 2
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "iteration 0: 1 prompts" in page
    assert not re.search(r"<[^>&]* on\w+=", page)


def test_the_plots_are_written_as_png_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "_$run$", baseline=True)
    write_report([str(folder)], str(tmp_path / "out" / "page.html"))
    assert sorted(path.name for path in (tmp_path / "out" / "page").iterdir()) == [
        "metrics.png",
        "speed.png",
        "time.png",
        "training.png",
        "warmup.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "out" / "page").iterdir())


def test_the_dark_plot_is_the_light_one_with_each_colour_replaced() -> None:
    def draw(axes: Axes, palette: Palette) -> None:
        for place, colour in enumerate(palette.series):
            axes.plot([0, 1], [place, 2], color=colour, marker="o")
        axes.set_xlabel("#1d2129")

    light, dark = render_svg(Plot("title", "", draw), (3, 2))
    assert "fill: #1d2129" in light
    assert "fill: #1d2129" not in dark
    for light_colour, dark_colour in zip(LIGHT.series, DARK.series, strict=True):
        assert light.count(f"stroke: {light_colour}") == dark.count(f"stroke: {dark_colour}") > 0
        assert light_colour not in dark
    # A text is no colour.
    assert ">#1d2129<" in light
    assert ">#1d2129<" in dark


def test_several_runs_and_a_folder_of_runs_give_one_page_beside_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "sweep" / f"seed={seed}")
    assert open_runs([str(tmp_path / "sweep")]) == open_runs([f"{tmp_path}/sweep/seed=0", f"{tmp_path}/sweep/seed=1"])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from spin.cli.main import main; main()",
            "report",
            "run_dir=[sweep/seed=0,sweep/seed=1]",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("<h3>seed=0</h3>") == page.count("<h3>seed=1</h3>") == 3  # summary, metrics, time
    stores = [RunStore(tmp_path / "a" / "run"), RunStore(tmp_path / "b" / "run")]
    assert name_runs(stores) == ["a/run", "b/run"]
    # The runs of a comparison are METHOD/seed-N.
    run = write_run(tmp_path / "compared" / "sft" / "seed-3")
    stores = open_runs([str(tmp_path / "compared")])
    assert [store.root for store in stores] == [run]
    assert name_runs(stores) == ["sft/seed-3"]
    # A run at a URL has the name there, not that of its local copy.
    stores = [RunStore(tmp_path / "run-0123", Remote("s3://bucket/mine", tmp_path / "run-0123"))]
    assert name_runs(stores) == ["mine"]


def test_a_folder_that_holds_no_run_and_a_page_that_is_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        write_report([str(tmp_path)], None)
    folder = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="expected the name of an .html file"):
        write_report([str(folder)], str(tmp_path))


def test_curves_are_counted_on_and_thinned_by_means() -> None:
    first, second = join_curves([Curve([1, 2], {"loss": [4.0, 2.0]}), Curve([1, 2, 3], {"loss": [1.0, math.nan, 3.0]})])
    assert (first.steps, second.steps) == ([1, 2], [3, 4, 5])
    assert thin(second, "loss", 2) == ([3.0, 5.0], [1.0, 3.0])
    assert thin(first, "loss", 1) == ([1.5], [3.0])
    assert thin(first, "kl", 1) == ([], [])


def test_the_time_line_leaves_out_the_hours_in_which_a_run_was_stopped() -> None:
    work = [
        Span("start", "train", 100.0, 110.0, True),
        Span("start", "benchmark", 112.0, 120.0, True),
        Span("iteration 0", "train", 7300.0, 7330.0, True),
    ]
    spans, cuts = without_pauses(work)
    assert [(span.start, span.end) for span in spans] == [(0.0, 10.0), (12.0, 20.0), (20.0, 50.0)]
    assert cuts == [20.0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.implicitly_wait(2)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = [
        write_run(tmp_path_factory.mktemp("runs") / "first", baseline=True),
        write_run(tmp_path_factory.mktemp("runs") / "second"),
    ]
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report([str(folder) for folder in folders], str(out))
    return out


def rows(browser: Any) -> list[list[str]]:
    """The texts of the table of answers, as the browser shows them."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#rows tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )


def choose(browser: Any, control: str, value: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    Select(browser.find_element(By.ID, control)).select_by_value(value)


def shown(browser: Any, count: str) -> None:
    """Wait until the line above the table begins with `count`."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(lambda chrome: chrome.find_element(By.ID, "count").text.startswith(count))


def test_figures_are_read_and_answers_searched_filtered_and_turned_over_in_a_real_browser(
    browser: Any, page: Path
) -> None:
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    card = browser.find_element(By.CSS_SELECTOR, "#summary .card").text
    assert "0.333 → 0.833 (iteration 0); baseline 0 0.600" in card
    table = browser.find_element(By.CSS_SELECTOR, "[aria-label='Metrics of first']")
    lines = [
        [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
        for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    assert [line[:2] for line in lines] == [
        ["start", "0.333"],
        ["iteration 0 (best)", "0.833 [0.734, 0.912]"],
        ["baseline 0", "0.600"],
    ]
    # On a page of full width, no table of figures has to be scrolled to the side.
    browser.set_window_size(1400, 900)
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('#metrics .scroll')].map(part => part.scrollWidth - part.clientWidth)"
    )
    assert hidden
    assert max(hidden) <= 0
    shown(browser, "60 of 60 prompts, page 1 of 3")
    assert len(rows(browser)) == 25
    assert rows(browser)[7][1] == HOSTILE
    assert browser.title == "first, second – spin report"
    browser.find_element(By.ID, "on").click()
    assert [row[0] for row in rows(browser)][::24] == ["25", "49"]
    choose(browser, "filter", "gained")  # 20 to 49
    shown(browser, "30 of 60 prompts, page 1 of 2")
    browser.find_element(By.ID, "search").send_keys("NEEDLE")
    shown(browser, "1 of 60")
    assert rows(browser) == [["42", "Sort: 42", "Needle", "✗ wrong\nba", "✓ right\nab", "✗ wrong\nba"]]
    choose(browser, "kind", "2")  # sampled: right where greedy is not, so that none was gained
    shown(browser, "0 of 60")
    choose(browser, "filter", "lost")
    shown(browser, "1 of 60")
    choose(browser, "run", "1")
    assert [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#rows thead th")] == [
        "#",
        "prompt",
        "target",
        "start",
        "iteration 0",
    ]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_its_text_stands_out_in_light_and_dark(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(page.as_uri())
    root = "document.documentElement"
    inner, content, visible = browser.execute_script(f"return [innerWidth, {root}.scrollWidth, {root}.clientWidth]")
    assert (inner, content) == (width, visible)  # nothing to scroll to the side
    colours = browser.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return ['--paper', '--raised', '--mark', '--ink', '--soft', '--link', '--right', '--wrong']"
        ".map(name => style.getPropertyValue(name).trim())"
    )
    grounds, inks = colours[:3], colours[3:]
    assert (luminance(grounds[0]) < 0.2) == (scheme == "dark")
    assert min(contrast(ground, ink) for ground in grounds[:2] for ink in inks) >= 4.5
    assert contrast(grounds[2], inks[0]) >= 4.5
    assert contrast(grounds[2], inks[1]) >= 4.5
    # The browser takes the rendering with the colours of the page and the width of the window.
    images = browser.execute_script(
        "return [...document.querySelectorAll('.chart img')]"
        ".map(image => [image.currentSrc, image.naturalWidth, image.alt])"
    )
    drawn = [base64.b64decode(source.partition(",")[2]).decode() for source, _, _ in images]
    ink, other = (DARK.ink, LIGHT.ink) if scheme == "dark" else (LIGHT.ink, DARK.ink)
    assert all(f"fill: {ink}" in svg and other not in svg for svg in drawn)
    assert inks[0] == ink
    assert all(natural_width > 0 and alt for _, natural_width, alt in images)
    timelines = [svg for svg, (_, _, alt) in zip(drawn, images, strict=True) if "start train 2.0 s" in alt]
    assert len(timelines) == 2
    assert all(('width="792pt"' in svg) == (width == 1280) for svg in timelines)  # 11 inches of 72 points
    assert browser.get_log("browser") == []


def channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in channels(colour))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2: at least 4.5 for text."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
