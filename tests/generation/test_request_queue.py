"""Calls of several threads in one vLLM engine, and what each of them gets."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from spin.generation.engine import Engine
from spin.generation.requests import Answer, Request, count_calls
from spin.models.policy import Policy
from tests.tiny import write_model

REQUESTS = [Request([5 + number, 9, 30, 7], number) for number in range(120)]


def test_more_small_calls_than_large_ones_keep_the_batch_full() -> None:
    # Eight times 256 sequences are 32 calls of 64, 8 of 256, and 3 of 1,000.
    assert [count_calls(requests, on_gpu=False) for requests in (16, 64, 256, 1000, 5000)] == [64, 32, 8, 3, 2]
    assert count_calls(256, on_gpu=True) == 32


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    folder = tmp_path_factory.mktemp("policies")
    return write_model(folder / "a", seed=1), write_model(folder / "b", seed=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("float32", 64, kv_cache_gib=0.1)
    yield engine
    # Two engines do not live in one process.
    engine._llm = None
    gc.collect()


def sample(engine: Engine, policy: Policy, first: int = 0, last: int = len(REQUESTS)) -> list[Answer]:
    return engine.generate(policy, REQUESTS[first:last], 48, 1.0, 1.0, [0])


@pytest.mark.slow
def test_calls_in_flight_together_give_the_answers_and_log_probabilities_of_one_call_after_the_other(
    engine: Engine, policies: tuple[Policy, Policy]
) -> None:
    one_call = sample(engine, policies[0])
    assert len({len(answer.token_ids) for answer in one_call}) > 5
    with ThreadPoolExecutor(2) as callers:
        shards = callers.map(lambda first: sample(engine, policies[0], first, first + 40), range(0, 120, 40))
        assert [answer for shard in shards for answer in shard] == one_call


@pytest.mark.slow
def test_a_call_for_another_policy_waits_until_no_answer_is_in_flight(
    engine: Engine, policies: tuple[Policy, Policy]
) -> None:
    alone = [sample(engine, policy) for policy in policies]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(4) as callers:
        mixed = callers.map(lambda number: sample(engine, policies[number % 2]), range(6))
        assert list(mixed) == alone * 3


@pytest.mark.slow
def test_an_error_of_a_step_reaches_all_callers_and_leaves_nothing_behind(
    engine: Engine, policies: tuple[Policy, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = sample(engine, policies[0])
    inner = engine._llm.llm_engine
    step, num_callers = inner.step, 2
    both_wait = threading.Event()

    def fail_with_both() -> list[object]:
        # Both callers have requests in the engine.
        if len(engine._queue._calls) == num_callers and all(call.ids for call in engine._queue._calls):
            both_wait.set()
            raise RuntimeError("the step failed")
        return step()

    monkeypatch.setattr(inner, "step", fail_with_both)
    with ThreadPoolExecutor(num_callers) as callers:
        calls = [callers.submit(sample, engine, policies[0]) for _ in range(num_callers)]
        for call in calls:
            with pytest.raises(RuntimeError, match="the step failed"):
                call.result(timeout=60)
    assert both_wait.is_set()
    monkeypatch.undo()
    assert inner.get_num_unfinished_requests() == 0
    assert sample(engine, policies[0]) == alone


@pytest.mark.slow
def test_a_prompt_that_vllm_refuses_ends_its_own_call_alone(engine: Engine, policies: tuple[Policy, Policy]) -> None:
    alone = sample(engine, policies[0])
    too_long = [*REQUESTS[:100], Request([5] * 64, 0)]
    with ThreadPoolExecutor(2) as callers:
        good = callers.submit(sample, engine, policies[0])
        bad = callers.submit(engine.generate, policies[0], too_long, 48, 1.0, 1.0, [0])
        with pytest.raises(Exception, match="longer than the maximum model length"):
            bad.result(timeout=60)
        assert good.result(timeout=60) == alone
    assert engine._llm.llm_engine.get_num_unfinished_requests() == 0
