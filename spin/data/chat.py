"""Make the renderer of a model: choose its template, find what ends a turn, and try both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin.config.groups import ModelConfig
from spin.data.exchange import JOINED, NO_PREFIX, Exchange, Renderer, add_opening, encode_plain
from spin.data.templates import WAY_OUT, Message, Template, Unrenderable, choose_template
from spin.errors import ConfigError

__all__ = ["Exchange", "Message", "Renderer", "Unrenderable", "encode_text", "load_renderer", "make_renderer"]

QUESTION: Message = {"role": "user", "content": "sentinel question"}
ANSWER = "sentinel answer"
THOUGHT = f"<think>\nsentinel thought\n</think>\n\n{ANSWER}"


def load_renderer(model: ModelConfig, folder: Path, tokenizer: Any = None) -> Renderer:
    """Make the renderer of the model in a folder.

    Args:
        model: chat template, its variables, and whether code of the model may run.
        folder: tokenizer and generation config.
        tokenizer: that of the folder, if it is loaded already.

    Raises:
        ConfigError: see `make_renderer`.
    """
    from transformers import AutoTokenizer

    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    # The generation config names no end token, one, or several.
    stop_ids = None
    generation_config = folder / "generation_config.json"
    if generation_config.exists():
        stop_ids = json.loads(generation_config.read_text()).get("eos_token_id")
    if stop_ids is None:
        stop_ids = []
    if isinstance(stop_ids, int):
        stop_ids = [stop_ids]
    return make_renderer(tokenizer, model.chat_template, stop_ids, model.chat_template_kwargs)


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
    # What ends a turn: the template's token, else the EOS, else the generation config's first.
    end_id, after_end_ids = find_end_of_turn(tokenizer, tail, generation_stop_ids)
    if end_id is None:
        end_id = tokenizer.eos_token_id
    if end_id is None and generation_stop_ids:
        end_id = generation_stop_ids[0]
    if end_id is None:
        raise ConfigError(
            "neither the chat template nor the tokenizer ends a turn (no eos token); "
            "set eos_token in the model's tokenizer_config.json"
        )
    # Text after an answer that is no token cannot end generation.
    if after_end_ids is None and tail.strip():
        end = tokenizer.convert_ids_to_tokens(end_id)
        notes.append(
            f"{chosen.label} ends an answer with {tail!r}, which is no token of its own; {end} ends it instead"
        )
    # Generation stops at everything that may end a turn.
    stops = {end_id, *generation_stop_ids}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    renderer = Renderer(
        tokenizer=tokenizer,
        template=chosen,
        opening_ids=opening_ids,
        end_id=end_id,
        stop_ids=tuple(sorted(stops)),
        tail=tail,
        after_end_ids=after_end_ids,
        end_texts=list_end_texts(tokenizer, stops),
    )
    notes += try_renderer(renderer)
    return replace(renderer, notes=tuple(notes))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Encode a text that no template rendered, with the tokenizer's BOS once and no EOS."""
    return add_opening(find_opening(tokenizer), encode_plain(tokenizer, text))


def find_opening(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts before any text: its BOS, or nothing."""
    plain = encode_plain(tokenizer, "x")
    full = list(tokenizer("x", add_special_tokens=True)["input_ids"])
    for position in range(len(full)):
        if full[position : position + len(plain)] == plain:
            return full[:position]
    return []


def find_missing_opening(tokenizer: Any, template: Template, probe: str, notes: list[str]) -> tuple[int, ...]:
    """Return the tokenizer's opening ids if the template does not write them itself.

    A template that came with the tokenizer is kept as it is; a missing BOS is added to the notes.

    Args:
        probe: an exchange, rendered.
        notes: receives remarks for the user.
    """
    # The template may write the opening itself, or put it elsewhere.
    opening = find_opening(tokenizer)
    bos = tokenizer.bos_token
    begins_with_it = encode_plain(tokenizer, probe)[: len(opening)] == opening
    if begins_with_it or (bos and bos in probe):
        return ()
    if template.is_own:
        notes.append(
            f"{template.label} writes no {tokenizer.decode(opening)}, though the tokenizer puts it before plain "
            "text; prompts are as the template writes them"
        )
        return ()
    return tuple(opening)


def find_end_of_turn(
    tokenizer: Any, tail: str, generation_stop_ids: Sequence[int]
) -> tuple[int | None, tuple[int, ...] | None]:
    """Find the end token: the first token of `tail` that is not blank, if it was added as a whole.

    Args:
        tail: what the template writes after an answer.

    Returns:
        Its id and the ids after it, or None twice.
    """
    ends = {*generation_stop_ids, *tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = encode_plain(tokenizer, tail)
    for position, token in enumerate(ids):
        # Llama 2's template writes a blank before the end token.
        if not tokenizer.decode([token]).strip():
            continue
        if token in ends:
            return token, tuple(ids[position + 1 :])
        break
    return None, None


def list_end_texts(tokenizer: Any, stops: set[int]) -> tuple[str, ...]:
    """Return the texts of the stop tokens, without ordinary words and line breaks."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    texts: list[str] = []
    for stop in sorted(stops & special):
        text = tokenizer.convert_ids_to_tokens(stop)
        if text.strip():
            texts.append(text)
    return tuple(texts)


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
