"""Start vLLM, let it hold one policy at a time, and swap weights in place.

vLLM runs in the caller's process, in a thread of its own: a separate process would take 20 s longer
to start.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spin.garbage_collection import uncollected_imports
from spin.generation.adapter_requests import AdapterRequests, adapter_options
from spin.generation.cpu_engine import prepare_cpu_engine
from spin.generation.request_queue import RequestQueue
from spin.generation.requests import count_batch_tokens
from spin.models.policy import Policy, check_policy

logger = logging.getLogger(__name__)


class PolicyEngine:
    """One vLLM engine, which holds one policy at a time and may be used by several threads.

    Every call names the policy, so a restarted engine cannot answer with a wrong one. While calls
    for one policy are in flight, a call for another one waits.
    """

    def __init__(
        self,
        dtype: str,
        max_model_len: int,
        tensor_parallel_size: int = 1,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.4,
        trust_remote_code: bool = False,
        sleeps: bool = False,
        adapter_rank: int = 0,
    ) -> None:
        """Store the options. The first call loads the model.

        Args:
            dtype: Dtype of the weights, such as ``bfloat16``.
            max_model_len: Largest length of prompt and answer together, in tokens.
            tensor_parallel_size: Number of devices that share the model.
            kv_cache_gib: Size of the key-value cache on a CPU, in GiB.
            gpu_memory_utilization: Share of a GPU's memory for weights and cache.
            trust_remote_code: Run Python code from the model's folder.
            sleeps: True if `sleep` will be called.
            adapter_rank: Rank of new adapters that are served on a base; 0 for none.
        """
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            "trust_remote_code": trust_remote_code,
            "load_format": "safetensors",
            "max_num_batched_tokens": count_batch_tokens(max_model_len),
        }
        self._adapter_rank = adapter_rank
        # vLLM's Ray backend would request GPUs from Ray, which this process already holds.
        if tensor_parallel_size > 1:
            self._options["distributed_executor_backend"] = "mp"
        self._kv_cache_bytes = int(kv_cache_gib * 2**30)
        self._gpu_memory_utilization = gpu_memory_utilization
        self._sleeps = sleeps
        self._asleep = False
        self._llm: Any = None
        # Digest of the loaded policy; None while the weights are missing or unknown.
        self._digest: str | None = None
        self._served = AdapterRequests()

        # Everything that runs vLLM is done in this thread: CUDA and OpenMP keep state by thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._queue = RequestQueue(self._thread)
        self._num_users = 0
        """Calls in flight, all for the policy that is loaded."""
        self._users_changed = threading.Condition()

    def sleep(self) -> None:
        """Free the device memory of weights and cache until the next `load`.

        Waits until no call is in flight.

        Weights are discarded (vLLM's level 2). A base with adapters goes to main memory (level 1),
        because vLLM cannot load weights under adapters. On a CPU vLLM only stops scheduling.

        Raises RuntimeError when another program takes memory of the GPU meanwhile.
        """
        with self._users_changed:
            self._users_changed.wait_for(lambda: self._num_users == 0)
            self._thread.submit(self._sleep).result()

    def _sleep(self) -> None:
        if self._llm is not None and not self._asleep:
            self._digest = None
            try:
                self._llm.sleep(level=1 if self._adapter_rank else 2)
            except AssertionError as error:
                # vLLM compares the device's free memory before and after.
                raise RuntimeError(
                    f"vLLM could not free its GPU memory ({error}): another program took memory of this GPU "
                    "meanwhile; a colocated run needs the GPU for itself"
                ) from error
            self._asleep = True

    def holds(self, policy: Policy) -> bool:
        """Return True if the weights of `policy` are loaded."""
        return self._digest == policy.digest

    def load(self, policy: Policy) -> None:
        """Start the engine with `policy`, or load its weights into the running engine.

        Waits until no call for another policy is in flight. Raises CheckpointError when the files
        differ from those that were promoted.
        """
        with self.hold(policy):
            pass

    @contextmanager
    def hold(self, policy: Policy) -> Iterator[None]:
        """Load a policy as `load` does, and keep it loaded until the block ends."""
        with self._users_changed:
            self._users_changed.wait_for(lambda: self._num_users == 0 or self.holds(policy))
            if not self.holds(policy):
                check_policy(policy)
                self._thread.submit(self._load, policy).result()
            self._num_users += 1
        try:
            yield
        finally:
            with self._users_changed:
                self._num_users -= 1
                self._users_changed.notify_all()

    def _load(self, policy: Policy) -> None:
        """Load a policy that was checked; in the engine's thread."""
        if self._adapter_rank:
            self._load_adapter(policy)
            return
        if self._llm is not None:
            # The weights are unknown until the swap succeeds.
            self._digest = None
            try:
                self._swap(policy)
            except Exception as error:  # vLLM raises many kinds
                # A failed swap leaves the engine unusable. Start a new one from the checked files,
                # which raises if the fault is theirs.
                logger.warning("the weights of the engine cannot be replaced (%s); it starts again", error)
                self._llm = None
                self._asleep = False
                gc.collect()
        if self._llm is None:
            self._llm = self._start(policy.path)
        self._digest = policy.digest

    def _load_adapter(self, policy: Policy) -> None:
        """Load the base of a policy, unless the engine runs on it, and name its adapter."""
        self._digest = None
        if self._served.base != policy.base.digest:
            check_policy(policy.base)
            # A new base needs a new engine: vLLM cannot load weights under adapters.
            self._llm = None
            gc.collect()
            self._options |= adapter_options(self._adapter_rank, policy)
            self._llm = self._start(policy.base.path)
        elif self._asleep:
            self._llm.wake_up()
        self._asleep = False
        self._served.choose(policy)
        self._digest = policy.digest

    def _run(self, policy: Policy, prompts: Sequence[Any], sampling: Sequence[Any]) -> list[Any]:
        """Return vLLM's outputs by a policy, in the order of the prompts; see `RequestQueue`."""
        with self.hold(policy):
            return self._queue.run(self._llm, prompts, sampling, self._served.request)

    def _swap(self, policy: Policy) -> None:
        """Load the weights of `policy` into the running engine and clear its prefix cache."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("spin_reload", args=(str(Path(policy.path)),))
        # Wake the cache last: the reload may need its memory.
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        # Cached keys and values of shared prefixes come from the old weights.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")

    def _start(self, path: str) -> Any:
        """Start vLLM in this process."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        if torch.cuda.is_available():
            device = {"gpu_memory_utilization": self._gpu_memory_utilization, "enable_sleep_mode": self._sleeps}
        else:
            device = prepare_cpu_engine(self._options["tensor_parallel_size"], self._kv_cache_bytes)
        with uncollected_imports():
            from vllm import LLM

        return LLM(
            path,
            worker_extension_cls="spin.generation.weight_reload.ReloadExtension",
            disable_log_stats=True,
            seed=0,
            **self._options,
            **device,
        )
