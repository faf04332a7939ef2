"""The bench still measures what the committed figures of the release name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.mark.slow
def test_the_bench_has_the_keys_of_the_committed_baseline(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    words = ["--size", "tiny", "--seeds", "0", "--rounds", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, str(BENCH / "baseline.py"), *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    committed = json.loads((BENCH / "baseline.json").read_text())
    assert found.keys() == committed.keys()
    for part in committed:
        assert list(found[part]) == list(committed[part])
    # No timed test: a busy machine decides how large a ratio is, but each is one.
    assert all(ratio > 0.1 for ratio in found["ratios"].values())
