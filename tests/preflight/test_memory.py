"""The memory of all processes of a run, on sizes small enough to add up by hand."""

from pathlib import Path

import pytest

from spin.config.cluster import Placement
from spin.config.groups import DataConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype, TrainingConfig
from spin.data.builtin import write_tiny_model
from spin.models.model_size import ModelShape, read_shape
from spin.preflight.hardware import Device
from spin.preflight.memory import GIB, describe_memory, list_memory_parts

SHAPE = ModelShape(262_144, 640, {Dtype.float32: 600_000, Dtype.bfloat16: 300_000})
WEIGHTS = 268_098_176
"""A model as large as one of 270M that was measured: 13.5 GiB for all processes, of which 4.1 for
the engine, 8.6 for the training worker, 0.4 for the driver and 0.4 for Ray."""


def config_of(**settings: object) -> RunConfig:
    return RunConfig(
        "unused",
        1,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        objective=SpinObjective(),
        training=TrainingConfig(batch_size=32, max_length=96),
        generation=GenerationConfig(max_tokens=32, **settings),  # type: ignore[arg-type]
    )


def test_the_parts_of_a_270m_model_are_within_a_quarter_of_what_was_measured() -> None:
    engine, training = (4.0 * WEIGHTS, 1.0 * GIB), 16.0 * WEIGHTS
    parts = {part.role: part for part in list_memory_parts(config_of(), engine, training, SHAPE, {})}
    measured = {"driver and Ray": 0.9, "engine": 4.1, "training worker": 8.6}
    assert list(parts) == list(measured)
    for role, gib in measured.items():
        assert parts[role].each / GIB == pytest.approx(gib, rel=0.25)
    assert sum(part.each for part in parts.values()) / GIB == pytest.approx(13.5, rel=0.25)


def test_each_further_process_and_model_is_added() -> None:
    config = config_of(replicas=3)
    config.cluster.placement = Placement.split
    alone = list_memory_parts(config, (4000.0, 0.0), 16_000.0, ModelShape(), {})
    assert [(part.role, part.count) for part in alone] == [
        ("driver and Ray", 1),
        ("engine", 3),
        ("training worker", 1),
        ("scorer", 1),
    ]
    # The judge has 500 weights of 4 bytes, in a process as large as the others with vLLM.
    judged = list_memory_parts(config, (4000.0, 0.0), 16_000.0, ModelShape(), {"judge": 500})
    assert judged[2].each == alone[1].each - 4000 + 2000
    line = describe_memory(config, Device("CPU", 2, GIB, 1e9), (4000.0, 0.0), 16_000.0, (1000, 0, ModelShape()), {})
    assert "4.2 GiB of 1.0 GiB for all processes at once, MORE THAN THE MACHINE HAS" in line
    assert "3 × engine 0.8 GiB" in line


def test_the_sizes_of_a_model_are_those_of_its_config(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", 0)
    shape = read_shape(tmp_path / "model", False, False)
    # Two residual streams in float32; queries, keys, values, attention and both halves of the MLP.
    layers, hidden, inner = 4, 128, 344
    in_float32 = layers * (8 * hidden + 4 * (4 * hidden + 2 * inner)) + 4 * 3 * inner + 16 * hidden
    assert (shape.vocabulary, shape.hidden, shape.token_bytes[Dtype.float32]) == (259, hidden, in_float32)
