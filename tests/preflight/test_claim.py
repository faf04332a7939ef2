"""What a new launch finds in its run directory."""

import dataclasses
import json
from pathlib import Path

import pytest

from spin import __version__
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig, fingerprint, fingerprint_of_defaults
from spin.errors import ConfigError
from spin.preflight.claim import check_claim, claim, end_launch
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore


def config_of(run_dir: Path) -> RunConfig:
    return RunConfig(
        str(run_dir),
        model=ModelConfig("m"),
        data=DataConfig("d"),
        feedback=FeedbackConfig(),
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


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name, but for the lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin_launch(config: RunConfig) -> Ledger:
    """What a launch writes before the run begins."""
    root = Path(config.run_dir)
    root.mkdir(exist_ok=True)
    ledger = claim(config, [config], RunStore(root))
    ledger.append("model", digest="0" * 64)
    for name in ("model/config.json", "prompts/train.parquet", "metrics.jsonl"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    return ledger


def test_what_a_refused_launch_left_is_deleted_and_its_config_binds_nobody(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    begin_launch(config)
    other = dataclasses.replace(config, seed=config.seed + 1)
    ledger = claim(other, [other], RunStore(tmp_path / "run"))
    assert set(content_of(tmp_path / "run")) == {"config.yaml", "launching", "ledger.jsonl"}
    assert [json.loads(line)["unit"] for line in ledger.path.read_text().splitlines()] == ["run"]
    check_claim(other, [other], RunStore(tmp_path / "run"), ledger)
    with pytest.raises(ConfigError, match="another config: seed"):
        check_claim(config, [config], RunStore(tmp_path / "run"), ledger)


@pytest.mark.parametrize("lines", [1, 2])
def test_a_run_whose_ledger_lost_all_but_its_first_lines_is_refused_and_left_as_it_is(
    tmp_path: Path, lines: int
) -> None:
    config = config_of(tmp_path / "run")
    ledger = begin_launch(config)
    ledger.append("data", sha256={}, train=5, heldout=2)
    end_launch(RunLayout(tmp_path / "run"), RunStore(tmp_path / "run"))
    claim(config, [config], RunStore(tmp_path / "run"))  # while the ledger is whole, the run goes on
    ledger.path.write_text("".join(ledger.path.read_text().splitlines(keepends=True)[:lines]))
    before = content_of(tmp_path / "run")
    with pytest.raises(ConfigError, match="ledger.jsonl has lost lines"):
        claim(config, [config], RunStore(tmp_path / "run"))
    assert content_of(tmp_path / "run") == before


def test_files_that_no_launch_makes_are_never_deleted_as_those_of_a_refused_one(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    begin_launch(config)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = content_of(tmp_path / "run")
    with pytest.raises(ConfigError, match="ledger.jsonl has lost lines"):
        claim(config, [config], RunStore(tmp_path / "run"))
    assert content_of(tmp_path / "run") == before


def test_a_launch_that_ended_while_its_mark_was_still_there_goes_on_as_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    begin_launch(config).append("data", sha256={}, train=5, heldout=2)
    claim(config, [config], RunStore(tmp_path / "run"))
    assert not (tmp_path / "run" / "launching").exists()
    assert (tmp_path / "run" / "prompts" / "train.parquet").exists()


def test_a_changed_key_of_the_run_or_of_an_iteration_that_has_begun_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    warmer = dataclasses.replace(config, generation=dataclasses.replace(config.generation, temperature=2.0))
    ledger = claim(config, [config, config], RunStore(tmp_path))
    ledger.append("data", sha256={}, train=5, heldout=2)
    claim(config, [config, warmer], RunStore(tmp_path))  # iteration 1 has not begun
    ledger.append("iterations/001/config", keys=fingerprint(config))
    with pytest.raises(ConfigError, match="another config: iteration 1: generation.temperature=2.0 \\(was 1.0\\); put"):
        claim(config, [config, warmer], RunStore(tmp_path))
    with pytest.raises(ConfigError, match="another config: generation.temperature=2.0 \\(was 1.0\\); put"):
        claim(warmer, [warmer, warmer], RunStore(tmp_path))


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_keys_that_it_did_not_know(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    ledger = claim(config, [config], RunStore(tmp_path))
    ledger.append("data", sha256={}, train=5, heldout=2)
    recorded = fingerprint(config)
    del recorded["data.ptx.limit"], recorded["generation.temperature"]
    ledger.append("run", version=__version__, keys=recorded)
    claim(config, [config], RunStore(tmp_path))
    config.data.ptx.limit = 5
    config.generation.temperature = 2.0
    with pytest.raises(
        ConfigError, match=r"data.ptx.limit=5 \(was null\), generation.temperature=2.0 \(was 1.0\); put"
    ):
        claim(config, [config], RunStore(tmp_path))


def test_each_key_that_a_resume_must_share_has_a_default_or_is_required(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    defaults = fingerprint_of_defaults(config)
    assert defaults.keys() == fingerprint(config).keys()
    assert (defaults["seed"], defaults["data.ptx.limit"], defaults["data.path"]) == ("0", "null", '"d"')
