"""Settings that let training take less of a GPU's memory."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from spin.cluster.training_actor import TrainingWorker
from spin.config.cluster import Placement
from spin.config.groups import GenerationConfig
from spin.config.training import Sharding
from spin.training.sharding import make_accelerator


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_a_training_worker_has_segments_that_grow_unless_the_user_has_set_the_allocator(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    config: Any = SimpleNamespace(cluster=SimpleNamespace(trainer_threads=1))
    store: Any = None
    TrainingWorker.__ray_actor_class__(config, 0, 1, (), store)
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_gradients_lie_in_the_buckets_of_ddp() -> None:
    handler = make_accelerator(Sharding.none).ddp_handler
    assert handler is not None
    assert handler.gradient_as_bucket_view


def test_an_engine_has_most_of_a_gpu_whose_trainer_gives_its_memory_back() -> None:
    shares = [GenerationConfig().find_memory_share(placement) for placement in Placement]
    assert dict(zip(Placement, shares, strict=True)) == {
        Placement.sequential: 0.4,
        Placement.split: 0.4,
        Placement.colocated: 0.8,
    }
    assert GenerationConfig(gpu_memory_utilization=0.6).find_memory_share(Placement.colocated) == 0.6
