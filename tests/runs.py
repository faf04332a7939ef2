"""A small real run, as the slow tests start it: real vLLM, real Ray, real training."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.chaos_driver import SMALL as SMALL_RUN
from spin.models.policy import policy_digest
from spin.run_dir.files import file_sha256

SMALL = [*SMALL_RUN, "warmup.training.checkpoint_every=4"]


def command(run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", "from spin.cli.main import main; main()", "run", *SMALL, f"run_dir={run_dir}", *more]


def run(run_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(run_dir, *more), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done


def outcome(run_dir: Path) -> dict[str, str]:
    """What must be equal: samples and pairs by digest, promoted weights bit by bit, figures."""
    files = [path for kind in ("samples", "pairs") for path in run_dir.glob(f"iterations/*/{kind}/*.parquet")]
    files += [*run_dir.glob("iterations/*/heldout/judged.parquet"), *run_dir.glob("prompts/*.parquet")]
    digests = {str(path.relative_to(run_dir)): file_sha256(path) for path in files}
    for path in run_dir.glob("iterations/*/benchmark.json"):
        figures = json.loads(path.read_text())
        figures.pop("speed")  # what the clock said
        digests[str(path.relative_to(run_dir))] = json.dumps(figures)
    return digests | {str(path.relative_to(run_dir)): policy_digest(path) for path in run_dir.glob("**/policy")}


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "ledger.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def heed_sigint() -> None:
    """A test run that was started in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
