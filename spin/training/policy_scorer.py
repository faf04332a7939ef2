"""Hold one model in memory: log-probabilities under a policy, or rewards of a reward model."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spin.config.adapter import AdapterConfig
from spin.config.training import Dtype, Layout, Sharding, TrainingConfig
from spin.models.adapter_files import find_lora_config, load_adapter
from spin.models.cpu_memory import keep_freed_memory, limit_kernel_caches
from spin.models.forward import GroupLogps
from spin.models.layer_calls import set_layer_calls
from spin.models.layouts import ForwardChoice
from spin.models.loading import load_policy
from spin.models.lora import describe_scaling, inject_adapter, keep_trained_only, reset_adapter
from spin.models.model_size import count_adapter, count_weights
from spin.models.packing import Group, micro_batches
from spin.models.policy import Policy, check_adapter, check_policy
from spin.models.reward_adapter import inject_reward_adapter
from spin.models.scalar_head import GroupRewards, GroupValues, Head, load_reward_model
from spin.models.token_budget import CPU_TOKEN_CAP, free_memory
from spin.models.token_logps import TokenLogps
from spin.models.value_head import GroupLogpsAndValues, load_value_head
from spin.run_dir.store import LOCAL_STORE, RunStore
from spin.training.pass_budget import TrainedModel, plan_token_budget
from spin.training.passes import explain_out_of_memory
from spin.training.sharding import make_accelerator

SCORERS: dict[Head, type[GroupLogps]] = {
    Head.language: GroupLogps,
    Head.scalar: GroupRewards,
    Head.value: GroupValues,
}
"""What computes with a model that has each head."""


class PolicyScorer:
    """Holds at most one model at a time: a policy, or a reward model."""

    def __init__(
        self,
        dtype: Dtype,
        trust_remote_code: bool = False,
        sharding: Sharding = Sharding.none,
        store: RunStore = LOCAL_STORE,
        adapter: AdapterConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Set up the device and the workers.

        Args:
            dtype: Dtype of the matrix products; weights are float32, except for a frozen base.
            trust_remote_code: Whether code from a model folder may run.
            sharding: How the workers share the model in training.
            store: Where saved states go.
            adapter: Settings of adapters; None to train all weights.
            seed: Seed of the random values of new adapters.
        """
        self.accelerator = make_accelerator(sharding)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
            limit_kernel_caches()
        self.dtype = dtype
        self._sharding = sharding
        self._store = store
        self._trust_remote_code = trust_remote_code
        self._held: tuple[str, Head] | None = None
        """Digest and head of the model that is held; None without one, or after training."""
        self._choices: dict[Head, ForwardChoice] = {}
        """What `training.layout=auto` chose for models with each head."""
        self._adapter = adapter
        if adapter is not None and not adapter.enabled:
            self._adapter = None
        self._seed = seed
        self._base: tuple[str, str] | None = None
        """Digest of the frozen weights that are held, and scaling of the adapter inside them."""
        self.scorer: Any = None
        self.note: str | None = None
        """What `training.layout=auto` fell back to, and why."""
        self.token_budget = CPU_TOKEN_CAP
        """Tokens of a forward pass if `training.micro_batch_tokens` is not set."""

    @property
    def model(self) -> Any:
        """Return the Hugging Face model that is held."""
        return self.scorer.model

    def find_token_budget(
        self,
        policy: Policy,
        memory_share: float = 1.0,
        checkpointing: bool = False,
        compiled: bool = False,
        own_critic: bool = False,
    ) -> int:
        """Set and return `token_budget` from the memory beside weights, gradients and optimizer.

        Args:
            policy: The policy that will be trained.
            memory_share: Share of the free memory that this worker may use.
            checkpointing: `training.gradient_checkpointing`, with which a token takes less memory.
            compiled: `training.compile_layers`; so does this.
            own_critic: Whether a critic of the policy's size is trained beside it.
        """
        from transformers import AutoConfig

        folder = policy.base.path
        config = AutoConfig.from_pretrained(folder, trust_remote_code=self._trust_remote_code).get_text_config()
        trained, base_dtype = 0, Dtype.float32
        if self._adapter is not None:
            start = None
            if policy.adapter is not None:
                start = Path(policy.adapter.path)
            trained = count_adapter(self._adapter, Path(folder), start, self._trust_remote_code)
            base_dtype = self._adapter.base_dtype
        model = TrainedModel(config, count_weights(Path(folder)), trained, base_dtype, own_critic)
        self.token_budget = plan_token_budget(
            model,
            self.accelerator.device,
            int(memory_share * free_memory(self.accelerator.device)),
            self.dtype,
            self._sharding,
            self.accelerator.num_processes,
            checkpointing,
            compiled,
        )
        return self.token_budget

    def holds(self, policy: Policy, head: Head = Head.language) -> bool:
        """Return whether the weights of `policy` are loaded, with this head."""
        return self._held == (policy.digest, head)

    def load(
        self,
        policy: Policy,
        training: TrainingConfig,
        head: Head = Head.language,
        is_trained: bool = False,
        critic_head: Policy | None = None,
    ) -> None:
        """Load the weights of `policy` unless they are held already.

        Args:
            policy: A policy, or with `Head.scalar` a reward model or a policy that becomes one.
            training: Settings of the stage.
            head: What the model is read out with.
            is_trained: Whether a training stage begins: then a reward model gets a new adapter.
            critic_head: The head of a critic to read a policy out with beside `head`, or the policy
                itself for a new one; None for no critic.

        Raises:
            CheckpointError: The files of the policy were altered.
        """
        begins_reward_adapter = is_trained and head is Head.scalar and self._adapter is not None
        if begins_reward_adapter or not self.holds(policy, head):
            if begins_reward_adapter:
                assert self._adapter is not None
                check_policy(policy)
                model = self._make_reward_model(policy, self._adapter)
            elif self._adapter is None or head is not Head.language:
                check_policy(policy)
                model = self._load_weights(policy, head)
            else:
                check_adapter(policy)
                model = self._load_with_adapter(policy, self._adapter)
            self._held = (policy.digest, head)
        else:
            model = self.model
        scorer_type = SCORERS[head]
        if critic_head is not None:
            scorer_type = GroupLogpsAndValues
        self.scorer = scorer_type(
            model,
            self.dtype,
            training.layout.name,
            training.gradient_checkpointing,
            self._sharding is Sharding.full,
            self._choices.get(head),
            training.compile_layers,
        )
        if critic_head is not None and critic_head.digest != policy.digest:
            check_policy(critic_head)
            load_value_head(self.scorer.value_head, Path(critic_head.path))
        if self._base is not None or begins_reward_adapter:
            keep_trained_only(self.scorer)

    def _load_weights(self, policy: Policy, head: Head, dtype: Dtype = Dtype.float32) -> Any:
        """Return the model in the folder of a policy; the one held before is freed."""
        # Free the old model first: there is memory for one. A layer whose call was replaced refers
        # to itself, and would stay until Python looks for such circles.
        if self.scorer is not None:
            set_layer_calls(self.model, checkpointing=False)
        self.scorer, self._held, self._base = None, None, None
        load = load_policy if head is Head.language else load_reward_model
        device = self.accelerator.device
        return load(Path(policy.path), self._trust_remote_code, getattr(torch, dtype.name), device)

    def _make_reward_model(self, policy: Policy, settings: AdapterConfig) -> Any:
        """Return a reward model with the frozen weights of a policy and a new adapter inside."""
        model = self._load_weights(policy, Head.scalar, settings.base_dtype)
        inject_reward_adapter(model, settings)
        reset_adapter(model, self._seed)
        return model

    def _load_with_adapter(self, policy: Policy, settings: AdapterConfig) -> Any:
        """Return the base of a policy with its adapter inside, or with a new one.

        A new adapter changes nothing, so a policy without one is its own base. A base that is held
        stays: policies of one run differ in their adapters alone.
        """
        folder = None
        if policy.adapter is not None:
            folder = Path(policy.adapter.path)
        lora_config = find_lora_config(folder, settings)
        wanted = (policy.base.digest, describe_scaling(lora_config))
        if self._base == wanted:
            model = self.model
        else:
            check_policy(policy.base)
            model = self._load_weights(policy.base, Head.language, settings.base_dtype)
            inject_adapter(model, lora_config)
            self._base = wanted
        # Until the values are complete, the weights are those of no policy.
        self._held = None
        if folder is None:
            reset_adapter(model, self._seed)
        else:
            load_adapter(model, folder)
        return model

    def release(self) -> None:
        """Drop the model and give its memory back to the device."""
        self.scorer, self._held, self._base = None, None, None
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def choose_layout(self, training: TrainingConfig, groups: Sequence[Group], head: Head = Head.language) -> None:
        """Let `training.layout=auto` choose once, on the longest and the shortest group."""
        if groups and training.layout is Layout.auto and head not in self._choices:
            by_length = sorted(groups, key=lambda group: group.longest)
            self.note = self.scorer.choose([by_length[-1], by_length[0]])
            self._choices[head] = self.scorer.choice

    def score(
        self, policy: Policy, groups: Sequence[Group], training: TrainingConfig, head: Head = Head.language
    ) -> list[list[float]]:
        """Return the log-probability of each completion under `policy`, group by group.

        With `Head.scalar` these are the rewards of a reward model, without its `bias`. Nothing is
        collective: each worker scores what it is given.
        """
        scores: list[list[float]] = [[] for _ in groups]
        for indices, logps in self.compute(policy, groups, training, head):
            sums = iter(logps.sums().tolist())
            for index in indices:
                scores[index] = [next(sums) for _ in groups[index].completions]
        return scores

    def score_tokens(
        self, policy: Policy, groups: Sequence[Group], training: TrainingConfig, head: Head = Head.language
    ) -> list[list[list[float]]]:
        """Return the log-probability of each token of each completion, as `score` does of sums.

        With `Head.value` these are the values of a critic.
        """
        scores: list[list[list[float]]] = [[] for _ in groups]
        for indices, logps in self.compute(policy, groups, training, head):
            tokens = iter(logps.lists())
            for index in indices:
                scores[index] = [next(tokens) for _ in groups[index].completions]
        return scores

    @torch.no_grad()
    def compute(
        self,
        policy: Policy,
        groups: Sequence[Group],
        training: TrainingConfig,
        head: Head,
        critic_head: Policy | None = None,
    ) -> Iterator[tuple[list[int], TokenLogps]]:
        """Yield the indices of the groups of each forward pass, and its log-probabilities."""
        self.load(policy, training, head, critic_head=critic_head)
        self.choose_layout(training, groups, head)
        budget = training.micro_batch_tokens or self.token_budget
        with self.scorer.weights_kept():
            for indices in micro_batches(groups, budget, self.scorer.layout):
                chosen = [groups[index] for index in indices]
                with explain_out_of_memory(chosen):
                    logps = self.scorer(chosen)
                yield indices, logps
