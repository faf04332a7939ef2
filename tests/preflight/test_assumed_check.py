"""`spin check cluster.assume=…` on model folders, with and without a tokenizer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spin.config.cluster import ClusterConfig
from spin.config.groups import DataConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype
from spin.data.builtin import write_tiny_model
from spin.errors import ConfigError
from spin.preflight.check_command import check_run
from tests.preflight.test_check_command import MISTRAL


def make_config(folder: Path, assume: str | None) -> RunConfig:
    """A run on the built-in letters with the model in the folder."""
    return RunConfig(
        str(folder / "run"),
        2,
        model=ModelConfig(str(folder / "model"), dtype=Dtype.bfloat16),
        data=DataConfig("builtin:letters", limit=20, eval_limit=5),
        objective=SpinObjective(),
        cluster=ClusterConfig(assume=assume),
    )


def test_a_plan_for_gpus_that_are_not_here_needs_a_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MISTRAL))
    config = make_config(tmp_path, "1xH100")
    check_run(config, [config] * 2)
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    # 7,241.7 M weights: 4 bytes each, the same for gradients, twice that for AdamW's moments.
    assert rows["train"][1:8] == ["256", "27.0", "GiB", "27.0", "GiB", "54.0", "GiB"]
    assert "(7,241.7 M weights)" in out
    assert "what fits: adapter=lora" in out
    assert "has no tokenizer, so the data were not read" in " ".join(out.split())
    assert not (tmp_path / "run").exists()
    # It is a plan only, and without it weights are needed.
    config = make_config(tmp_path, None)
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        check_run(config, [config] * 2)


def test_a_plan_with_a_tokenizer_counts_the_data_and_the_gpus_that_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "model", 0)
    config = make_config(tmp_path, "8xA100")
    check_run(config, [config] * 2)
    out = " ".join(capsys.readouterr().out.split())
    assert "plan for 8 assumed A100 of 80.0 GiB" in out
    assert "2 of 8 GPUs are used" in out  # an engine and a trainer
    assert "every stage fits on these GPUs" in out
    assert "no tokenizer" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "reward"])
def test_a_run_on_assumed_gpus_is_refused(tmp_path: Path, command: str) -> None:
    arguments = [command, "experiment=quickstart", "cluster.assume=8xH100"]
    done = subprocess.run(
        [sys.executable, "-c", "from spin.cli.main import main; main()", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "spin: cluster.assume=8xH100 is a plan for GPUs that are not here, for spin check alone; "
        "leave it out to run on what is here\n"
    )
    assert not (tmp_path / "outputs").exists()
