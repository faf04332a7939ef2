"""Find the model that a run starts from, and check it before its weights are loaded."""

from __future__ import annotations

from pathlib import Path

from spin.config.run import RunConfig
from spin.data import builtin
from spin.data.chat_renderer import Renderer
from spin.data.renderer_setup import load_renderer
from spin.errors import ConfigError
from spin.models.policy import Policy, check_policy, find_model, policy_digest
from spin.preflight.model_config import check_model_config
from spin.preflight.model_files import check_model_files
from spin.run_dir.files import write_folder_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import MODEL
from spin.run_dir.store import RunStore


def resolve_model(config: RunConfig, store: RunStore, ledger: Ledger) -> Policy:
    """Return the model with the digest that the run recorded; the first launch records it.

    Raises:
        ConfigError: There is no such model.
        CheckpointError: It is not the one that the run began with.
    """
    # A resume must start from the same weights. It does not write the built-in model again: an
    # altered one is refused below.
    facts = ledger.get(MODEL)
    folder = locate_model(config, store, write_builtin=facts is None)
    if facts is None:
        facts = {"digest": policy_digest(folder)}
        ledger.append(MODEL, **facts)
    policy = Policy(str(folder.resolve()), facts["digest"])
    store.fetch(Path(policy.path))
    check_policy(policy)
    return policy


def locate_model(config: RunConfig, store: RunStore, write_builtin: bool = True) -> Path:
    """Return the folder of the model. The built-in one lies in the run directory.

    Raises ConfigError when there is no such model.
    """
    path = config.model.path
    if path == builtin.BUILTIN_MODEL:
        folder = RunLayout(store.root).model
        if write_builtin:
            write_folder_atomically(folder, lambda temporary: builtin.write_tiny_model(temporary, config.seed))
            store.publish(folder)
        return folder
    if path.startswith("builtin:"):
        raise ConfigError(f"model.path={path}: the only built-in model is {builtin.BUILTIN_MODEL}")
    found = find_model(path)
    check_model_files(found, path)
    return found


def check_model(config: RunConfig, folder: Path) -> Renderer:
    """Check a model's config and tokenizer before its weights are loaded.

    Returns:
        The renderer of its prompts.

    Raises:
        ConfigError: transformers cannot use them, or the configured lengths exceed the context.
    """
    from transformers import AutoConfig, AutoTokenizer

    # transformers raises these errors for a file that is missing or malformed, or an unknown model.
    trust = config.model.trust_remote_code
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        message = f"model.path={config.model.path} is no usable model: {str(error).splitlines()[0]}"
        if "trust_remote_code" in str(error):
            message += "; model.trust_remote_code=true runs it, if you trust it"
        raise ConfigError(message) from error

    # The longest prompt with the longest answer must fit into the model's context.
    max_tokens = config.generation.max_tokens
    longest = config.max_prompt_length + max_tokens
    context = getattr(model_config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts of {config.max_prompt_length} and answers of {max_tokens} tokens exceed "
            f"the model's context of {context}; lower generation.max_prompt_tokens or generation.max_tokens"
        )
    renderer = load_renderer(config.model, folder, tokenizer)
    check_model_config(config, folder, model_config, tokenizer)
    return renderer
