"""Answer the prompts of several callers in one vLLM engine at the same time.

`LLM.generate` answers one list of prompts, and while its longest answers are finished, most places
of the engine's batch are empty. Here the prompts of the next caller fill them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

PORTION = 64
"""The most requests that are added between two steps, so that running answers wait only shortly."""


class _Call:
    """The prompts of one caller, and their outputs so far."""

    def __init__(self, prompts: Sequence[Any], sampling: Sequence[Any], lora_request: Any) -> None:
        self.prompts = prompts
        self.sampling = sampling
        self.lora_request = lora_request
        self.num_added = 0
        """How many prompts the engine has got."""
        self.ids: list[str] = []
        """vLLM's internal id of each request that was added."""
        self.outputs: dict[int, Any] = {}
        """Finished outputs by the position of their prompt."""
        self.result: Future[list[Any]] = Future()


class RequestQueue:
    """The calls in flight of one engine; they may come from several threads."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        """`thread` is the only one that runs the engine: CUDA and OpenMP keep state by thread."""
        self._thread = thread
        self._lock = threading.Lock()
        self._calls: list[_Call] = []
        self._is_running = False
        """True while the thread makes steps."""
        self._owners: dict[str, tuple[_Call, int]] = {}
        """Call and position of the prompt of each unfinished request, by the id in its output."""

    def run(self, llm: Any, prompts: Sequence[Any], sampling: Sequence[Any], lora_request: Any) -> list[Any]:
        """Return vLLM's outputs in the order of the prompts; waits until the last one is finished.

        Args:
            llm: the engine, the same for all calls in flight.
            prompts: as for `LLM.generate`.
            sampling: the parameters of each prompt.
            lora_request: the adapter of all prompts, or None.

        Raises the error with which vLLM refused a prompt, or with which a step failed. A failed
        step ends all calls in flight. The engine keeps none of their requests.
        """
        if not prompts:
            return []
        call = _Call(prompts, sampling, lora_request)
        with self._lock:
            self._calls.append(call)
            if not self._is_running:
                self._is_running = True
                self._thread.submit(self._make_steps, llm)
        return call.result.result()

    def _make_steps(self, llm: Any) -> None:
        """Add requests and make steps until no call is left."""
        while True:
            with self._lock:
                calls = list(self._calls)
                self._is_running = bool(calls)
            if not calls:
                return
            if not self._add_portion(llm, calls):
                continue
            try:
                outputs = llm.llm_engine.step()
            except BaseException as error:  # the callers must not wait for ever
                for call in calls:
                    self._end(llm, call, error)
                continue
            for output in outputs:
                if output.finished:
                    self._take(output)

    def _add_portion(self, llm: Any, calls: list[_Call]) -> bool:
        """Add the next requests of the oldest call that has some; False if vLLM refuses one."""
        for call in calls:
            first, last = call.num_added, call.num_added + PORTION
            prompts = call.prompts[first:last]
            if not prompts:
                continue
            try:
                ids = llm.enqueue(prompts, call.sampling[first:last], lora_request=call.lora_request, use_tqdm=False)
            except BaseException as error:  # the caller must not wait for ever
                self._end(llm, call, error)
                return False
            call.num_added += len(prompts)
            call.ids += ids
            for position, internal_id in enumerate(ids, first):
                # An output has the number alone; vLLM appends random characters to it internally.
                self._owners[internal_id.split("-")[0]] = (call, position)
            return True
        return True

    def _take(self, output: Any) -> None:
        """Give a finished output to its call, and end the call with its last output."""
        call, position = self._owners.pop(output.request_id)
        call.outputs[position] = output
        if len(call.outputs) == len(call.prompts):
            self._remove(call)
            call.result.set_result([call.outputs[position] for position in range(len(call.prompts))])

    def _end(self, llm: Any, call: _Call, error: BaseException) -> None:
        """End a call with an error, and take its requests out of the engine."""
        # An engine that failed may refuse this too; the first error says more.
        with suppress(Exception):
            llm.llm_engine.abort_request(call.ids, internal=True)
        for internal_id in call.ids:
            self._owners.pop(internal_id.split("-")[0], None)
        self._remove(call)
        call.result.set_exception(error)

    def _remove(self, call: _Call) -> None:
        with self._lock:
            self._calls.remove(call)
