"""What a new launch finds in its run directory."""

from pathlib import Path

import pytest

from spin import __version__
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig, fingerprint
from spin.errors import ConfigError
from spin.preflight.claim import claim
from spin.run_dir.ledger import Ledger
from spin.run_dir.store import RunStore


def config_of(run_dir: Path) -> RunConfig:
    return RunConfig(
        str(run_dir),
        model=ModelConfig("m"),
        data=DataConfig("d"),
        feedback=FeedbackConfig(_target_="spin.feedback.ground_truth.GroundTruth"),
        objective=SpinObjective(),
    )


def test_a_run_that_was_begun_by_version_0_1_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("run", keys=fingerprint(config))
    ledger.append("data", sha256={}, train=5, heldout=2)
    before = ledger.path.read_bytes()
    with pytest.raises(ConfigError, match="written by another version of spin \\(0.1, this is"):
        claim(config, [config], RunStore(tmp_path))
    assert ledger.path.read_bytes() == before


def test_the_version_of_a_new_run_is_recorded(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    store = RunStore(tmp_path / "run")
    store.root.mkdir()
    assert (claim(config, [config], store).get("run") or {})["version"] == __version__
    claim(config, [config], store)  # the same version goes on
