"""Make the renderer of a model: choose its template, find what ends a turn, and try both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin.config.groups import ModelConfig
from spin.data.bos_token import find_missing_opening
from spin.data.chat_renderer import JOINED, NO_PREFIX, Renderer
from spin.data.chat_templates import WAY_OUT, Message, Unrenderable, choose_template
from spin.data.end_of_turn import find_end_tokens
from spin.errors import ConfigError
from spin.run_dir.files import read_json

QUESTION: Message = {"role": "user", "content": "sentinel question"}
ANSWER = "sentinel answer"
THOUGHT = f"<think>\nsentinel thought\n</think>\n\n{ANSWER}"


def load_renderer(model: ModelConfig, folder: Path, tokenizer: Any = None) -> Renderer:
    """Make the renderer of the model in a folder.

    Args:
        model: chat template, its variables, and whether code of the model may run.
        folder: config, tokenizer and generation config.
        tokenizer: that of the folder, if it is loaded already.

    Raises:
        ConfigError: see `make_renderer`.
    """
    from transformers import AutoConfig, AutoTokenizer

    # The check of the model has loaded it already.
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    stop_ids = read_stop_ids(folder)
    renderer = make_renderer(tokenizer, model.chat_template, stop_ids, model.chat_template_kwargs)
    model_config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    return replace(renderer, embedding_rows=model_config.get_text_config().vocab_size)


def read_stop_ids(folder: Path) -> list[int]:
    """Return the end tokens of a model's generation config, which has none, one, or several.

    Raises:
        ConfigError: the file cannot be read, or names something else.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return []
    stop_ids = read_json(file, way_out="download or save it again").get("eos_token_id")
    if stop_ids is None:
        return []
    if isinstance(stop_ids, int):
        stop_ids = [stop_ids]
    if not isinstance(stop_ids, list) or not all(isinstance(stop_id, int) for stop_id in stop_ids):
        raise ConfigError(f"{file}: eos_token_id {stop_ids!r} is no token; expected an id, or a list of ids")
    return stop_ids


def make_renderer(
    tokenizer: Any,
    template: str,
    generation_stop_ids: Sequence[int] = (),
    template_kwargs: Mapping[str, Any] | None = None,
) -> Renderer:
    """Choose the template, find what ends a turn, and try both on one exchange.

    Args:
        tokenizer: the model's, from transformers.
        template: `model.chat_template`, see `choose_template`.
        generation_stop_ids: end tokens of the model's generation config.
        template_kwargs: `model.chat_template_kwargs`.

    Returns:
        The renderer; its `notes` are for the user.

    Raises:
        ConfigError: there is no template, it can render no exchange, no prompt can be cut from its
            exchanges, or nothing ends a turn.
    """
    chosen = choose_template(tokenizer, template, template_kwargs or {})
    notes = list(chosen.notes)
    # One exchange that every template must be able to render.
    try:
        probe = chosen.render(tokenizer, [QUESTION, {"role": "assistant", "content": ANSWER}])
    except Unrenderable as error:
        raise ConfigError(str(error)) from error
    if ANSWER not in probe:
        raise ConfigError(f"{chosen.label} drops the assistant's words; {WAY_OUT}")
    # What stands around the answer: the opening of the text and the end of the turn.
    tail = probe.rpartition(ANSWER)[2]
    opening_ids = find_missing_opening(tokenizer, chosen, probe, notes)
    # Generation and training must agree on where an answer ends.
    ends = find_end_tokens(tokenizer, tail, generation_stop_ids, chosen.label, notes)
    renderer = Renderer(
        tokenizer=tokenizer,
        template=chosen,
        opening_ids=opening_ids,
        end_id=ends.end_id,
        stop_ids=ends.stop_ids,
        tail=tail,
        after_end_ids=ends.after_end_ids,
        end_texts=ends.end_texts,
    )
    notes += try_renderer(renderer)
    return replace(renderer, notes=tuple(notes))


def try_renderer(renderer: Renderer) -> list[str]:
    """Render one exchange; if that fails, one whose answer begins with a thought.

    Returns:
        Notes for the user.

    Raises:
        ConfigError: neither can be cut.
    """
    label = renderer.template.label
    notes: list[str] = []
    try:
        exchange = renderer.exchange([QUESTION], ANSWER)
    except Unrenderable as error:
        # Joined tokens depend on the words, so each row is tried by itself.
        if error.reason == JOINED:
            return notes
        if error.reason != NO_PREFIX:
            raise ConfigError(str(error)) from error
        try:
            exchange = renderer.exchange([QUESTION], THOUGHT)
        except Unrenderable:
            raise ConfigError(str(error)) from error
        notes.append(
            f"{label} opens a thought in the prompt: completions without <think>...</think> are dropped ({error})"
        )
    if exchange.boundary_split:
        notes.append(
            f"{label} and the tokenizer join the end of the prompt and the beginning of the answer to one token; "
            "the prompt stays as generation gets it, and the answer is encoded on its own"
        )
    return notes
