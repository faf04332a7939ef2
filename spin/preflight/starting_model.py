"""Find the model that a run starts from, and check it before its weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin.config.run import RunConfig
from spin.data import builtin
from spin.data.chat_renderer import Renderer
from spin.data.renderer_setup import load_renderer
from spin.errors import ConfigError, single_line
from spin.models.adapter_folder import write_merged
from spin.models.policy import Adapter, Policy, check_adapter, check_policy, find_model, policy_digest
from spin.preflight.adapter_check import check_peft
from spin.preflight.model_config import check_model_config
from spin.preflight.model_files import check_model_files
from spin.preflight.start_adapter import find_start_adapter
from spin.run_dir.files import write_folder_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore
from spin.run_dir.unit import MODEL


def resolve_model(config: RunConfig, store: RunStore, ledger: Ledger) -> Policy:
    """Return the model with the digest that the run recorded; the first launch records it.

    Raises:
        ConfigError: There is no such model.
        CheckpointError: It is not the one that the run began with.
    """
    # A resume must start from the same weights. It does not write the model of the run directory
    # again: an altered one is refused below.
    facts = ledger.get(MODEL)
    folder = locate_model(config, store, write_own=facts is None)
    if facts is None:
        facts = {"digest": policy_digest(folder), **digest_adapter(config)}
        ledger.append(MODEL, **facts)
    policy = make_model_policy(config, folder, facts)
    store.fetch(Path(policy.path))
    check_policy(policy)
    check_adapter(policy)
    return policy


def locate_model(config: RunConfig, store: RunStore, write_own: bool = True) -> Path:
    """Return the folder of the model.

    The built-in model, and the sum of a model and an adapter, lie in the run directory.

    Raises ConfigError when there is no such model.
    """
    path = config.model.path
    own = RunLayout(store.root).model
    if path == builtin.BUILTIN_MODEL and config.adapter.path is None:
        if write_own:
            write_folder_atomically(own, lambda temporary: builtin.write_tiny_model(temporary, config.seed))
            store.publish(own)
        return own
    if path.startswith("builtin:"):
        expected = f"the only built-in model is {builtin.BUILTIN_MODEL}, and adapter.path does not go with it"
        raise ConfigError(f"model.path={path}: {expected}")
    start = find_start_adapter(config)
    if start is None:
        found = find_model(path, needs_weights=config.cluster.assume is None)
        check_model_files(found, path)
        return found
    check_model_files(start.model, path)
    if write_own:
        check_peft()
        write_merged(start, own, config.model.trust_remote_code, config.model.dtype.name)
        store.publish(own)
    return own


def digest_adapter(config: RunConfig) -> dict[str, str]:
    """Return the digests of the adapter that a run starts from and of its base, if there is one."""
    start = find_start_adapter(config)
    if start is None:
        return {}
    base = policy_digest(start.model)
    return {"adapter": policy_digest(start.adapter, base), "base": base}


def make_model_policy(config: RunConfig, folder: Path, facts: dict[str, Any]) -> Policy:
    """Return the model that a run was given.

    Args:
        config: The run's config.
        folder: From `locate_model`.
        facts: Its line in the ledger.
    """
    start = find_start_adapter(config)
    adapter = None
    if start is not None and config.adapter.enabled:
        base = Policy(str(start.model.resolve()), facts["base"])
        adapter = Adapter(str(start.adapter.resolve()), facts["adapter"], base)
    return Policy(str(folder.resolve()), facts["digest"], adapter)


def check_model(config: RunConfig, folder: Path) -> Renderer:
    """Check a model's config and tokenizer before its weights are loaded.

    Returns:
        The renderer of its prompts.

    Raises:
        ConfigError: transformers cannot use them, or the configured lengths exceed the context.
    """
    from transformers import AutoConfig, AutoTokenizer

    # transformers raises errors of any kind for a file that is missing or malformed.
    trust = config.model.trust_remote_code
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:  # see above
        message = f"model.path={config.model.path} is no usable model: {single_line(str(error))[:300]}"
        if "trust_remote_code" in str(error):
            message += "; model.trust_remote_code=true runs it, if you trust it"
        raise ConfigError(message) from error

    # The longest prompt with the longest answer must fit into the model's context.
    max_tokens = config.generation.max_tokens
    longest = config.max_prompt_length + max_tokens
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts of {config.max_prompt_length} and answers of {max_tokens} tokens exceed "
            f"the model's context of {context}; lower generation.max_prompt_tokens or generation.max_tokens"
        )
    renderer = load_renderer(config.model, folder, tokenizer)
    check_model_config(config, folder, model_config, tokenizer)
    return renderer


def check_other_models(config: RunConfig) -> None:
    """Check the files of the models that judge answers and that give rewards.

    Raises ConfigError when there is no such model, or a file cannot be used.
    """
    paths = {"reward_model.path": config.reward_model.path}
    if config.judge.is_own_model:
        paths["judge.model"] = config.judge.model
    for key, path in paths.items():
        if path is None:
            continue
        folder = find_model(path, key)
        try:
            check_model_files(folder, path)
        except ConfigError as error:
            # The message is about the policy's model, whose checks these are.
            raise ConfigError(str(error).replace("model.path=", f"{key}=")) from error
