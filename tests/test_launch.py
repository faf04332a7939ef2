"""What is refused before the first minute of compute, where a command line cannot show it."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from spin.config import RunConfig
from spin.errors import ConfigError
from spin.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.launch import launch_checks, start_model
from spin.layout import RunLayout
from spin.ledger import Ledger
from spin.objective_config import SpinObjective


def test_too_little_disk_for_the_checkpoints_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = FeedbackConfig(_target_="spin.feedback.ground_truth.GroundTruth")
    config = RunConfig(str(tmp_path), 3, model=ModelConfig("builtin:tiny"), data=DataConfig("builtin:letters"), feedback=feedback, objective=SpinObjective())
    layout = RunLayout(tmp_path)
    ledger = Ledger(layout.ledger)
    model = start_model(config, layout, ledger)
    launch_checks(config, [config] * 3, layout, ledger, model)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 8 << 20))  # 3 checkpoints of 3.3 MiB do not fit
    with pytest.raises(ConfigError, match="3 checkpoints of .* are to be written; free some or choose another disk"):
        launch_checks(config, [config] * 3, layout, ledger, model)
