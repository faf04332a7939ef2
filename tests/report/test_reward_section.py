"""The report's section on the reward model: its figures, its diagram, and damaged files."""

import json
from pathlib import Path

import yaml

from spin.config.groups import DataConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.reward_model import RewardModelConfig
from spin.config.run import RunConfig, fingerprint, to_plain
from spin.report.page import write_report
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

FIGURES = {
    "prompts": 500,
    "pairs": 2992,
    "accuracy": 0.973,
    "best_of_k": 0.981,
    "brier": 0.02,
    "nll": 0.07,
    "ece": 0.011,
    "length_correlation": None,
    "intervals": {"accuracy": [0.966, 0.979]},
    "subsets": {"easy <b>": {"prompts": 250, "accuracy": 0.99}},
    "reliability": [
        {"confidence": 0.52, "accuracy": 0.5, "pairs": 12},
        {"confidence": 0.99, "accuracy": 1, "pairs": 9},
    ],
}


def write_run(run_dir: Path) -> Path:
    """Write a run with a measured reward model, and return the file of its figures."""
    layout = RunLayout(run_dir)
    config = RunConfig(
        str(run_dir),
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        objective=SpinObjective(),
        reward_model=RewardModelConfig(data_path="builtin:letters-ranked"),
    )
    path = layout.reward_model.evaluation
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(FIGURES))
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    from spin import __version__

    ledger.append("run", version=__version__, keys=fingerprint(config))
    ledger.append("reward_model/reward_model", digest="ab", opponent="cd")
    ledger.append("reward_model/evaluation", sha256=file_sha256(path))
    return path


def test_the_page_has_the_figures_and_the_diagram_of_the_reward_model(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_report([str(tmp_path / "run")], str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert '<h2 id="reward-model-title">Reward model</h2>' in page
    assert "<td>0.973 (0.966 to 0.979)</td>" in page
    # Texts of the data are escaped.
    assert "accuracy on easy &lt;b&gt;" in page
    assert "0.50 at 0.52 (12 pairs), 1.00 at 0.99 (9 pairs)" in page
    assert (tmp_path / "page" / "reward_model.png").is_file()


def test_altered_figures_are_not_shown(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    path.write_text(path.read_text().replace("0.973", "0.999"))
    write_report([str(tmp_path / "run")], str(tmp_path / "page.html"))
    assert "reward-model-title" not in (tmp_path / "page.html").read_text()
