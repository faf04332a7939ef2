"""Find the token that ends a turn, and all tokens that end generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spin.data.bos_token import encode_plain
from spin.errors import ConfigError


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a turn or generation."""

    end_id: int
    """Last id of a completion: the template's end of a turn, else the tokenizer's EOS."""
    after_end_ids: tuple[int, ...] | None
    """Ids that the template writes after the end token; None if it writes no end token."""
    stop_ids: tuple[int, ...]
    """Ids that end generation, in ascending order."""
    end_texts: tuple[str, ...]
    """Texts of the stop tokens that were added to the vocabulary as a whole."""


def find_end_tokens(
    tokenizer: Any, tail: str, generation_stop_ids: Sequence[int], label: str, notes: list[str]
) -> EndTokens:
    """Find what ends a turn: a token of the template, the EOS, or one of the generation config.

    Args:
        tokenizer: the model's, from transformers.
        tail: what the template writes after an answer.
        generation_stop_ids: end tokens of the model's generation config.
        label: name of the template in messages.
        notes: receives remarks for the user.

    Raises:
        ConfigError: nothing ends a turn.
    """
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
        notes.append(f"{label} ends an answer with {tail!r}, which is no token of its own; {end} ends it instead")
    # Generation stops at everything that may end a turn.
    stops = {end_id, *generation_stop_ids}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    return EndTokens(end_id, after_end_ids, tuple(sorted(stops)), list_end_texts(tokenizer, stops))


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
