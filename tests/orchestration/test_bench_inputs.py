"""What a bench takes over from the run, on run directories that hold only a config and a ledger."""

from pathlib import Path

import pytest
import yaml

from spin.config.run import Baseline, to_plain
from spin.data.parquet import write_rows
from spin.data.records import Prompt
from spin.errors import CheckpointError
from spin.orchestration.bench_inputs import copy_history, read_prompts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import read_state
from tests.run_dir.test_plan import config_of


def test_the_bench_of_a_run_with_raised_iterations_keeps_the_rows_of_all_of_them(tmp_path: Path) -> None:
    source, layout = RunLayout(tmp_path), RunLayout(tmp_path / "bench")
    config = config_of(tmp_path, iterations=1)
    layout.root.mkdir()
    for folder in (source, layout):
        folder.config.write_text(yaml.safe_dump(to_plain(config)))
    known, ledger = Ledger(source.ledger), Ledger(layout.ledger)

    # The second launch of the run asked for two iterations and a baseline, without benchmarks.
    known.append("session", iterations=2, benchmark=False, baseline=True)
    known.append("model", digest="m")
    known.append("iterations/001/policy", digest="d", opponent="o", steps=3, tokens=6, seconds=2.0)

    # The bench measures both iterations.
    config.benchmark.enabled = True
    planned = copy_history(source, config, known, ledger)
    assert (planned.iterations, planned.baseline) == (2, Baseline.sft)
    for name in ("start", "iterations/000", "iterations/001", "baseline/000"):
        ledger.append(f"{name}/benchmark", sha256="s", judged="j", source="d", seconds=1.0)
    stages = read_state(layout, ledger).stages("benchmark")
    assert [stage.name for stage in stages] == ["start", "iterations/000", "iterations/001", "baseline/000"]
    assert ledger.get("iterations/001/policy") == known.get("iterations/001/policy")
    assert ledger.get("model") == known.get("model")

    # The same again adds no line.
    before = layout.ledger.read_text()
    copy_history(source, config, known, ledger)
    assert layout.ledger.read_text() == before


def test_a_bench_does_not_measure_on_held_out_rows_that_were_altered_or_lost(tmp_path: Path) -> None:
    source = RunLayout(tmp_path)
    path = source.prompts("heldout")
    digest = write_rows(path, Prompt, [])
    Ledger(source.ledger).append("data", sha256={"heldout": digest}, heldout=0)
    assert read_prompts(source, "heldout") == []
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="heldout.parquet was altered since it was finished; restore it"):
        read_prompts(source, "heldout")
    path.unlink()
    with pytest.raises(CheckpointError, match="heldout.parquet is gone"):
        read_prompts(source, "heldout")
