"""The plan for GPUs that are not here, against arithmetic by hand for four published shapes."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin.config.cluster import ClusterConfig, Placement
from spin.config.gpus import GPUS, parse_gpus
from spin.config.groups import DataConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype, Optimizer, Sharding, TrainingConfig
from spin.errors import ConfigError
from spin.models.token_budget import bytes_per_token
from spin.preflight.estimate import Estimate
from spin.preflight.gpu_plan import CONTEXT_BYTES, advise, make_training_plan, plan_stages
from spin.preflight.make_estimate import assume_sets, estimate_sizes
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.training.policy_scorer import PolicyScorer

GIB = 1 << 30
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000}


@dataclass(frozen=True)
class Shape:
    """A published shape, and its number of weights by the authors' files."""

    base: dict[str, Any]
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    weights: int

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        sizes = {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
        }
        (folder / "config.json").write_text(json.dumps(self.base | sizes))
        return folder


SHAPES = {
    "0.5B": Shape(QWEN, 896, 4864, 24, 14, 2, 494_032_768),
    "1.5B": Shape(QWEN, 1536, 8960, 28, 12, 2, 1_543_714_304),
    "7B": Shape(LLAMA, 4096, 11008, 32, 32, 32, 6_738_415_616),
    "13B": Shape(LLAMA, 5120, 13824, 40, 40, 40, 13_015_864_320),
}


def estimate_of(folder: Path, name: str, gpus: str, **training: Any) -> tuple[Estimate, Path]:
    """The estimate of a colocated run in bfloat16 with one engine and one trainer on each GPU."""
    count = parse_gpus(gpus).count
    model = SHAPES[name].write(folder / "model")
    config = RunConfig(
        str(folder / "run"),
        1,
        model=ModelConfig(str(model), dtype=Dtype.bfloat16),
        data=DataConfig("unused"),
        generation=GenerationConfig(replicas=count, prompts_per_iteration=800),
        objective=SpinObjective(),
        training=TrainingConfig(workers=count, **training),
        cluster=ClusterConfig(assume=gpus, placement=Placement.colocated),
    )
    layout = RunLayout(folder / "run")
    return estimate_sizes(config, [config], layout, Ledger(layout.ledger), model, *assume_sets(config)), model


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_counted_from_config_json_alone(tmp_path: Path, name: str) -> None:
    estimate, _ = estimate_of(tmp_path, name, "1xH100")
    assert estimate.weights == SHAPES[name].weights


def sharded_bytes(weights: int, hidden: int, layers: int, workers: int = 8) -> int:
    """Return what a worker holds of a Llama in bfloat16."""
    rest = 2 * 32_000 * hidden
    return int(16 / workers * weights + 2 * (weights - rest) + 12 * rest + 12 * (weights - rest) / layers)


@pytest.mark.parametrize(
    ("name", "gpus", "sharding", "held", "tokens", "fits"),
    [
        # Without sharding 16 bytes a weight: weights, gradients and two moments in float32.
        ("0.5B", "1xH100", Sharding.none, 16 * 494_032_768, 30_772, True),
        ("0.5B", "8xH100", Sharding.none, 16 * 494_032_768, 30_772, True),
        ("1.5B", "1xH100", Sharding.none, 16 * 1_543_714_304, 11_243, True),
        ("7B", "1xH100", Sharding.none, 16 * 6_738_415_616, 256, False),
        ("13B", "1xH100", Sharding.none, 16 * 13_015_864_320, 256, False),
        ("7B", "8xH100", Sharding.none, 16 * 6_738_415_616, 256, False),
        # Sharded: 16 / 8 bytes a weight; whole are layers with 2 bytes a weight, embedding and head
        # with 4 and with 8 for their gradients, and the gradients of one layer with 12.
        ("7B", "8xH100", Sharding.full, sharded_bytes(6_738_415_616, 4096, 32), 4_704, True),
        ("13B", "8xA100", Sharding.full, sharded_bytes(13_015_864_320, 5120, 40), 1_223, True),
        ("13B", "2xA100", Sharding.full, sharded_bytes(13_015_864_320, 5120, 40, 2), 256, False),
    ],
)
def test_memory_and_tokens_are_those_of_arithmetic_by_hand(
    tmp_path: Path, name: str, gpus: str, sharding: Sharding, held: int, tokens: int, fits: bool
) -> None:
    estimate, model = estimate_of(tmp_path, name, gpus, sharding=sharding)
    plan = make_training_plan(estimate, model)
    assert int(sum(plan.held().values())) == held == plan.model.held_bytes(plan.dtype, sharding, plan.workers)
    # 80 % of what is left beside 6 GiB for the head, at 2.1 times the bytes of a token.
    shape = SHAPES[name]
    layer = 8 * shape.hidden + 2 * (4 * shape.hidden + 2 * shape.inner)
    token = shape.layers * layer + 6 * shape.inner + 16 * shape.hidden
    left = GPUS[parse_gpus(gpus).name].memory - 2 * CONTEXT_BYTES - held - 6 * GIB
    assert plan.count_tokens() == max(256, int(0.8 * left / (2.1 * token)))
    assert plan.count_tokens() == pytest.approx(tokens, rel=0.001)
    assert plan.fits is fits
    assert bool(advise(estimate, plan)) is not fits


def test_the_columns_of_a_sharded_7b_with_rmsprop_and_its_engine(tmp_path: Path) -> None:
    estimate, model = estimate_of(
        tmp_path, "7B", "8xH100", sharding=Sharding.full, optimizer=Optimizer.rmsprop, gradient_checkpointing=True
    )
    plan = make_training_plan(estimate, model)
    stages = {stage.stage: stage for stage in plan_stages(estimate, plan)}
    weights = 6_738_415_616
    train = stages["train"].parts
    # Half a byte of each kind for a weight's part of 4 bytes, on one of 8 workers.
    whole = sharded_bytes(weights, 4096, 32) - 2 * weights
    assert train["weights"] == pytest.approx(whole + weights / 2)
    assert (train["gradients"], train["moments"]) == (weights / 2, weights / 2)
    # With checkpointing a layer keeps its input, 4 bytes a value, and one layer at a time the rest.
    layer = 8 * 4096 + 2 * (4 * 4096 + 2 * 11008)
    token = 32 * 4 * 4096 + layer + 6 * 11008 + 16 * 4096
    tokens = stages["train"].tokens
    # Logits in bfloat16, their gradient and a temporary; at most 2 GiB each.
    head = min(6 * GIB, 3 * tokens * 32_000 * 2)
    assert train["activations"] == pytest.approx(2.1 * token * tokens + head)
    assert stages["train"].total == pytest.approx(sum(train.values()) + 2 * CONTEXT_BYTES)
    assert stages["score"].parts["weights"] == 4 * weights
    assert stages["generate"].parts == {
        "engine weights": 2 * weights,
        "key-value cache": pytest.approx(0.8 * GPUS["H100"].memory - 2 * weights),
    }


def test_an_engine_that_stays_on_the_only_gpu_leaves_less_for_training(tmp_path: Path) -> None:
    estimate, model = estimate_of(tmp_path, "0.5B", "1xA100")
    asleep = make_training_plan(estimate, model).available
    estimate.config.cluster.placement = Placement.sequential
    assert make_training_plan(estimate, model).available == pytest.approx(asleep - 0.4 * GPUS["A100"].memory)


def test_generation_is_as_fast_as_memory_allows(tmp_path: Path) -> None:
    estimate, _ = estimate_of(tmp_path, "7B", "8xH100")
    # A sequence of 512 tokens has 2 × 32 × 4096 values of 2 bytes for each: 256 MiB of cache.
    weights, cache = estimate.engine_memory()
    running = cache / (1 << 28)
    assert 200 < running < 210
    step = 0.010 + (weights + cache) / 3.35e12
    assert estimate.find_flops("generate") == pytest.approx(2 * 6_738_415_616 * running / step)
    # 800 prompts with 512 tokens each, on 8 engines.
    expected = 800 * 512 / 8 / (running / step)
    assert estimate.seconds["iteration 0"]["generate"] == pytest.approx(expected)
    # Two completions of 512 tokens for each prompt: 6 operations a weight at 30 % of 989 TFLOP/s.
    trained = 6 * 6_738_415_616 * 2 * 800 * 512 / (8 * 0.3 * 989e12)
    assert estimate.seconds["iteration 0"]["train"] == pytest.approx(trained)


def test_sharded_workers_gather_weights_once_in_a_step_and_reduce_gradients_in_each_pass(tmp_path: Path) -> None:
    estimate, model = estimate_of(tmp_path, "7B", "8xH100", sharding=Sharding.full)
    plan = make_training_plan(estimate, model)
    weights, rest = 6_738_415_616, 2 * 32_000 * 4096
    assert plan.traffic() == ((2 * (weights - rest) + 4 * rest) * 7 / 8, 4 * weights * 7 / 8)
    # Layers in float32 are whole only while they compute, forward and backward.
    assert dataclasses.replace(plan, dtype=Dtype.float32).traffic() == (0, 12 * weights * 7 / 8)
    assert dataclasses.replace(plan, sharding=Sharding.none).traffic() == (0, 0)
    with_critic = dataclasses.replace(plan.model, own_critic=True)
    both = dataclasses.replace(plan, model=with_critic).traffic()
    assert both == (2 * plan.traffic()[0], 2 * plan.traffic()[1])


def test_a_plan_does_not_fit_if_the_whole_model_with_which_a_worker_scores_does_not(tmp_path: Path) -> None:
    estimate, model = estimate_of(tmp_path, "13B", "8xA100", sharding=Sharding.full)
    plan = dataclasses.replace(make_training_plan(estimate, model), workers=128, available=50e9)
    assert sum(plan.held().values()) + plan.pass_bytes(plan.longest) < 50e9
    # 4 bytes for each of 13.0 billion weights.
    assert not plan.fits


def test_passes_that_checkpointing_repeats_do_not_count_as_utilisation(tmp_path: Path) -> None:
    plain, _ = estimate_of(tmp_path / "plain", "0.5B", "1xH100")
    assert plain.find_mfu("train") == pytest.approx(0.3)
    repeated, _ = estimate_of(tmp_path / "repeated", "0.5B", "1xH100", gradient_checkpointing=True)
    # 8 operations are computed for a weight and a token, and 6 of them count.
    assert repeated.find_mfu("train") == pytest.approx(0.225)
    assert repeated.find_mfu("score") == pytest.approx(0.3)


def test_what_does_not_fit_is_told_with_settings_that_do(tmp_path: Path) -> None:
    estimate, model = estimate_of(tmp_path, "7B", "1xH100")
    [line] = advise(estimate, make_training_plan(estimate, model))
    assert line.startswith("does not fit: training needs ")
    assert "adapter=lora (" in line
    # Of 85.5 GB; with 2 workers 10.7 bytes a weight are 72.4 GB.
    assert "; 2 GPUs with training.sharding=full training.workers=2 (" in line
    # With 4 workers 6.5 bytes a weight are 85.2 GB, with 8 workers 4.5 are 59.1 GB.
    large, large_model = estimate_of(tmp_path / "large", "13B", "1xH100")
    [line] = advise(large, make_training_plan(large, large_model))
    assert "; 4 GPUs" not in line
    assert "8 GPUs with training.sharding=full training.workers=8 (" in line
    whole, whole_model = estimate_of(tmp_path / "whole", "7B", "8xH100")
    [line] = advise(whole, make_training_plan(whole, whole_model))
    assert "training.sharding=full training.workers=8 (" in line
    assert "16 GPUs" in line
    # 26 GB of weights are more than 0.4 of 40 GiB, and less than 0.8 of it.
    small, small_model = estimate_of(tmp_path / "small", "13B", "1xA100-40")
    assert "generation" not in advise(small, make_training_plan(small, small_model))[0]
    small.config.generation.gpu_memory_utilization = 0.4
    assert "raise generation.gpu_memory_utilization" in advise(small, make_training_plan(small, small_model))[0]


def test_the_tokens_are_those_that_a_training_worker_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, model = estimate_of(tmp_path, "0.5B", "1xH100")
    plan = make_training_plan(estimate, model)
    monkeypatch.setattr("spin.training.policy_scorer.free_memory", lambda _: int(plan.available))
    monkeypatch.setattr("spin.training.policy_scorer.count_weights", lambda _: 494_032_768)
    scorer = PolicyScorer(Dtype.bfloat16)
    # A worker on a GPU, as far as the budget sees it.
    scorer.accelerator = SimpleNamespace(device="cuda", num_processes=1)  # type: ignore[assignment]
    policy: Any = SimpleNamespace(base=SimpleNamespace(path=str(model)), adapter=None)
    assert scorer.find_token_budget(policy) == plan.count_tokens()
    assert scorer.find_token_budget(policy, checkpointing=True) > plan.count_tokens()


def test_compiled_layers_have_longer_passes_whether_they_are_sharded_or_not(tmp_path: Path) -> None:
    estimate, model = estimate_of(tmp_path, "7B", "8xH100", sharding=Sharding.full)
    plan = make_training_plan(estimate, model)
    for plain in (plan, dataclasses.replace(plan, sharding=Sharding.none, available=160 * GIB)):
        compiled = dataclasses.replace(plain, compiled=True)
        # 2.1 and 1.4 times the bytes of a token.
        assert compiled.count_tokens() == pytest.approx(1.5 * plain.count_tokens(), rel=0.001)
        assert compiled.pass_bytes(1000) < plain.pass_bytes(1000)
    assert bytes_per_token(plan.model.config, 2) > bytes_per_token(plan.model.config, 2, checkpointing=True)


@pytest.mark.parametrize("text", ["H100", "0xH100", "8xH10", "8 H100", "8xh100", "x", "100000xH100"])
def test_a_malformed_assumption_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a number of GPUs and a name, such as 8xH100; the names are H200"):
        ClusterConfig(assume=text)


@pytest.mark.parametrize("gpus", [0, 9])
def test_more_gpus_than_assumed_are_refused(gpus: int) -> None:
    with pytest.raises(ConfigError, match=f"cluster.gpus={gpus} with cluster.assume=8xH100: expected 1 to 8"):
        ClusterConfig(assume="8xH100", gpus=gpus)
