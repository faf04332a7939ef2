"""The bench of growth still runs, with a real run of `spin`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "growth.py"


@pytest.mark.slow
def test_the_bench_writes_the_figures_of_a_run(tmp_path: Path) -> None:
    found = tmp_path / "growth.json"
    command = [sys.executable, str(BENCH), "--prompts", "60", "--shards", "--json", str(found)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    [row] = json.loads(found.read_text())
    assert row["prompts"] == 60
    assert row["shards"] == 1
    assert row["peak_mib"] > 0
    assert row["ledger_lines"] > 0
    assert 0 < row["driver_share"] < 1
