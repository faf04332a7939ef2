"""Check a model's config and tokenizer before its weights are loaded, and rehearse saving it.

Each of these faults would otherwise be found when the engine starts, or after a whole training
stage.
"""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spin.config.run import RunConfig
from spin.errors import ConfigError, single_line
from spin.models.model_size import has_weights
from spin.preflight.hardware import list_gpus
from spin.preflight.model_files import read_model_json

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's CPU attention (`CPUAttentionBackend.get_supported_head_sizes`)."""

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
"""Endings of the names of the embedding and of the output layer."""

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
    # A plan needs no weights.
    if config.cluster.assume is None or has_weights(folder):
        layers = getattr(text_config, "num_hidden_layers", math.inf)
        _check_shapes(folder, path, layers, config.model.trust_remote_code)
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
    architectures = getattr(model_config, "architectures", None) or []
    if not architectures:
        raise ConfigError(
            f"model.path={path}: config.json names no architectures, by which the engine finds the model; add them as "
            'in "architectures": ["LlamaForCausalLM"]'
        )
    # BERT and its like can be loaded as a causal model too, and would be a model without sense.
    for architecture in architectures:
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
    is_here = config.cluster.address is None and config.cluster.assume is None
    on_cpu = is_here and (config.cluster.gpus == 0 or not list_gpus())
    if on_cpu and size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"model.path={config.model.path}: attention heads of size {size}, and vLLM on a CPU computes "
            f"{', '.join(map(str, CPU_HEAD_SIZES))} alone; use a GPU or another model"
        )


def _check_rope(config: RunConfig, text_config: Any) -> None:
    """Raise ConfigError when position factors depend on the longest sequence of a batch."""
    longest = config.training.max_length
    for rope in list_rope_settings(text_config):
        # Old configs call it `type`. transformers fills in both lengths from the config's own.
        kind = rope.get("rope_type", rope.get("type"))
        switch = math.inf
        if kind == "longrope":
            switch = getattr(text_config, "original_max_position_embeddings", switch)
            switch = rope.get("original_max_position_embeddings", switch)
        elif kind == "dynamic":
            switch = getattr(text_config, "max_position_embeddings", switch)
        if longest > switch:
            raise ConfigError(
                f"training.max_length={longest}: the model's {kind} takes other factors for all sequences of a "
                f"batch when one has more than {switch} tokens, so that log-probabilities depend on the batch; "
                f"expected at most {switch}"
            )
        # The wavelengths and their scale are positive; anything else makes NaN of the logits.
        for key in ("rope_theta", "factor"):
            value = rope.get(key)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ConfigError(f"model.path={config.model.path}: {key} {value!r} in config.json is not positive")
        # vLLM reads these keys (`get_rope`), and transformers does not.
        own_keys = sorted({"alpha", "max_trained_positions"} & set(rope))
        if kind == "dynamic" and own_keys:
            raise ConfigError(
                f"model.path={config.model.path}: the rope settings have {own_keys[0]}, with which the engine computes "
                "other positions than the trainer; expected the key factor alone"
            )


def list_rope_settings(text_config: Any) -> list[dict[str, Any]]:
    """Return the rope settings of a config: one dict, or one for each type of layer (Gemma 3)."""
    # A model's own code may still use the old name.
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    # A type of layer without positions has None.
    nested = [settings for settings in rope.values() if isinstance(settings, dict)]
    return nested or [rope]


def _layer_of(name: str) -> int:
    """Return the number of the layer that a weight belongs to; -1 for one outside of the layers."""
    found = re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", name)
    if found is None:
        return -1
    return int(found[1])


def _check_shapes(folder: Path, path: str, layers: float, trust_remote_code: bool) -> None:
    """Raise ConfigError when the weights of the folder are not those that config.json asks for.

    transformers loads them as the trainer does, old names and the model's own code included, but
    onto the device `meta`: it compares names and shapes and reads no value.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # a config may be wrong in any way
        raise ConfigError(
            f"model.path={path}: no model can be made from config.json and the weights "
            f"({single_line(str(error))[:300]})"
        ) from error
    unread = [name for name in sorted(info["unexpected_keys"]) if _layer_of(name) >= layers]
    if unread:
        raise ConfigError(
            f"model.path={path}: the files hold weight {unread[0]}, and config.json makes {layers} layers "
            f"({len(unread)} weights would be ignored)"
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"model.path={path}: weight {name} has shape {list(found)}, and config.json makes it {list(expected)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(f"model.path={path}: no file holds weight {missing[0]} ({len(missing)} missing)")
    outputs = model.get_output_embeddings()
    is_untied = outputs is not None and outputs.weight is not model.get_input_embeddings().weight
    if is_untied and model.config.get_text_config().tie_word_embeddings:
        _check_tied(folder, path)


def _check_tied(folder: Path, path: str) -> None:
    """Raise ConfigError when the files hold two matrices where the config says that they are one.

    transformers would take both, and the engine the embedding alone.
    """
    from safetensors import safe_open

    # The same matrix may have been written twice.
    matrices = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 this object is no dict
                if name.endswith(EMBEDDINGS):
                    matrices.append(tensors.get_tensor(name))
    if len(matrices) == 2 and not matrices[0].equal(matrices[1]):
        raise ConfigError(
            f"model.path={path}: the files hold an embedding and another output layer, and config.json ties the two "
            "(tie_word_embeddings); set it to false, or take the output layer out of the files"
        )


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
