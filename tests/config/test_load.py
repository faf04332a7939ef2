"""The config.yaml of a run directory, as this version and as an older one wrote it."""

from pathlib import Path

import pytest

from spin.config import load
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.load import load_config
from spin.config.objective import IpoObjective
from spin.config.run import RunConfig
from spin.errors import ConfigError
from spin.preflight.claim import write_config
from spin.run_dir.store import RunStore


def write(run_dir: Path, old: str = "", new: str = "") -> tuple[RunConfig, Path]:
    """Write a config, and replace a part of the text."""
    config = RunConfig(
        str(run_dir),
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=FeedbackConfig(),
        objective=IpoObjective(beta=0.5),
        schedule={1: ["training.epochs=2"]},
    )
    write_config(config, RunStore(run_dir))
    path = run_dir / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return config, path


def test_a_config_that_was_written_is_loaded_as_it_was(tmp_path: Path) -> None:
    config, path = write(tmp_path)
    assert load_config(path) == config


def test_a_renamed_key_is_refused_with_the_new_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = write(tmp_path, "batch_size: 64", "size: null")
    monkeypatch.setitem(load.RENAMED_KEYS, "training.size", "training.batch_size")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path} was written by another version of spin: "
        "training.size is no config key any more; use training.batch_size"
    )


@pytest.mark.parametrize(("old", "new"), [("batch_size: 64", "size: 64"), ("name: ipo", "name: orpo")])
def test_any_other_key_or_objective_that_is_unknown_is_refused_in_one_line(tmp_path: Path, old: str, new: str) -> None:
    _, path = write(tmp_path, old, new)
    with pytest.raises(ConfigError, match=f"{path} was written by another version of spin: ") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
