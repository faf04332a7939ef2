"""Check a model's config and tokenizer before its weights are loaded, and rehearse saving it.

Each of these faults would otherwise be found when the engine starts, or after a whole training
stage.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spin.config.run import RunConfig
from spin.errors import ConfigError, single_line
from spin.preflight.hardware import list_gpus
from spin.preflight.model_files import read_header, read_model_json

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's CPU attention (`CPUAttentionBackend.get_supported_head_sizes`)."""

OTHER_TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Endings of the architectures that cannot generate text from left to right."""


def check_model_config(config: RunConfig, folder: Path, model_config: Any, tokenizer: Any) -> None:
    """Check that engine and trainer can use the model, and that it can be saved.

    Args:
        config: Config of the run.
        folder: The model folder.
        model_config: Its config, as transformers has loaded it.
        tokenizer: Its tokenizer.

    Raises:
        ConfigError: One of them will fail.
    """
    path = config.model.path
    text_config = model_config.get_text_config()
    _check_decoder(model_config, path)
    _check_ids(text_config, tokenizer, folder, path)
    _check_heads(config, text_config)
    _check_rope(config, text_config)
    _check_shapes(model_config, folder, path)
    _rehearse_saving(model_config, tokenizer, folder, path)


def _check_decoder(model_config: Any, path: str) -> None:
    """Raise ConfigError when the model is of another kind than a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own_code = "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {})
    if model_config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not own_code:
        raise ConfigError(
            f"model.path={path}: model_type {model_config.model_type} is no decoder that transformers loads with "
            "AutoModelForCausalLM; expected a causal language model"
        )
    # BERT and its like can be loaded as a causal model too, and would be a model without sense.
    for architecture in getattr(model_config, "architectures", None) or []:
        if architecture.endswith(OTHER_TASKS):
            raise ConfigError(
                f"model.path={path}: architecture {architecture} in config.json; expected a causal language model"
            )


def _check_ids(text_config: Any, tokenizer: Any, folder: Path, path: str) -> None:
    """Raise ConfigError when a token has no row in the embedding, or a stop id is no token."""
    rows = text_config.vocab_size
    for token, token_id in tokenizer.get_vocab().items():
        if token_id >= rows and not _is_unused(token_id, tokenizer):
            raise ConfigError(
                f"model.path={path}: the tokenizer has a token {token!r} with id {token_id}, and the embedding {rows} "
                "rows; resize the embedding, or take the tokenizer that belongs to the model"
            )
    # transformers allows None, one id, or a list of ids, in either file.
    sources = {"config.json": text_config.eos_token_id}
    generation_config = folder / "generation_config.json"
    if generation_config.exists():
        sources[generation_config.name] = read_model_json(generation_config, path).get("eos_token_id")
    for name, ids in sources.items():
        for stop_id in np.atleast_1d(np.array(ids if ids is not None else [], dtype=np.int64)).tolist():
            if not 0 <= stop_id < rows:
                raise ConfigError(
                    f"model.path={path}: eos_token_id {stop_id} in {name} is no token; expected 0 to {rows - 1}"
                )


def _is_unused(token_id: int, tokenizer: Any) -> bool:
    """Return True for a special token that neither the chat template nor a sequence's end uses.

    Text models of a family with images keep the image's token, without a row for it: Gemma 3.
    """
    added = tokenizer.added_tokens_decoder.get(token_id)
    if added is None or not added.special:
        return False
    if token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return False
    return added.content not in str(tokenizer.chat_template or "")


def _check_heads(config: RunConfig, text_config: Any) -> None:
    """Raise ConfigError when the engine cannot compute the attention heads."""
    heads = getattr(text_config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        return
    parts = config.generation.tensor_parallel_size
    if heads % parts:
        raise ConfigError(
            f"generation.tensor_parallel_size={parts} does not divide the {heads} attention heads of the model"
        )
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    # A cluster that is joined may have GPUs that this machine does not see.
    on_cpu = config.cluster.address is None and (config.cluster.gpus == 0 or not list_gpus())
    if on_cpu and size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"model.path={config.model.path}: attention heads of size {size}, and vLLM on a CPU computes "
            f"{', '.join(map(str, CPU_HEAD_SIZES))} alone; use a GPU or another model"
        )


def _check_rope(config: RunConfig, text_config: Any) -> None:
    """Raise ConfigError when position factors depend on the longest sequence of a batch."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return
    switch: float = getattr(text_config, "original_max_position_embeddings", math.inf)
    switch = rope.get("original_max_position_embeddings", switch)
    longest = config.training.max_length
    if longest > switch:
        raise ConfigError(
            f"training.max_length={longest}: the model's longrope takes other factors for all sequences of a batch "
            f"when one has more than {switch} tokens, so that log-probabilities depend on the batch; expected at most "
            f"{switch}"
        )


def _check_shapes(model_config: Any, folder: Path, path: str) -> None:
    """Raise ConfigError when weights of the folder have other shapes than the config says."""
    import torch
    from transformers import AutoModelForCausalLM

    if getattr(model_config, "auto_map", None):
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
    except Exception as error:  # a config may be wrong in any way
        raise ConfigError(
            f"model.path={path}: no model can be made from config.json ({single_line(str(error))[:300]})"
        ) from error
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):
        for name, entry in read_header(file, path).items():
            found[name] = entry["shape"]
    for name, shape in found.items():
        if expected.get(name, shape) != shape:
            raise ConfigError(
                f"model.path={path}: weight {name} has shape {shape}, and config.json makes it {expected[name]}"
            )
    # Old checkpoints have other names, which transformers converts; then nothing can be said here.
    if set(found) <= set(expected):
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        missing = sorted(set(expected) - set(found) - tied)
        if missing:
            raise ConfigError(f"model.path={path}: no file holds weight {missing[0]} ({len(missing)} missing)")


def _rehearse_saving(model_config: Any, tokenizer: Any, folder: Path, path: str) -> None:
    """Save all but the weights to a scratch folder, as the first promoted policy will be."""
    from transformers import GenerationConfig

    name = "generation_config.json"
    parts: dict[str, Any] = {}
    try:
        if (folder / name).exists():
            parts[name] = GenerationConfig.from_pretrained(folder)
        parts |= {"config.json": model_config, "the tokenizer": tokenizer}
        with tempfile.TemporaryDirectory() as scratch:
            for name, part in parts.items():  # noqa: B007 the error names the part
                part.save_pretrained(scratch)
    except Exception as error:  # transformers raises many kinds
        reason = single_line(str(error))[:300]
        raise ConfigError(
            f"model.path={path}: transformers cannot save a copy of {name}: {reason}; correct the file, or every "
            "trained policy will be lost"
        ) from error
