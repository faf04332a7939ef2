"""Run tasks of lm-evaluation-harness on the engine that the run has already started.

The harness is an optional extra: `pip install 'spin-selfplay[lm_eval]'`. The perplexity of whole
documents (`loglikelihood_rolling`) is not supported: it needs windows over long texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from spin.config.benchmark import LmEvalConfig
from spin.data.bos_token import encode_plain, encode_text, find_opening
from spin.data.chat_renderer import Renderer
from spin.errors import ConfigError
from spin.models.policy import Policy

Decoding = tuple[tuple[str, ...], int, float, float]
"""Stop texts, largest number of tokens, temperature and top_p of a request."""


class AnsweringEngine(Protocol):
    """The methods of `spin.generation.engine.Engine` that are used here."""

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Any],
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
        stop: Sequence[str] = (),
    ) -> list[Any]: ...

    def score(self, policy: Policy, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]: ...


def check_tasks(config: LmEvalConfig) -> None:
    """Raise ConfigError when the harness is not installed or lacks a task."""
    if not config.tasks:
        return
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise ConfigError(
            f"benchmark.lm_eval.include_path={config.include_path}: no such folder; expected one with task YAML files"
        )
    try:
        manager = make_task_manager(config)
    except ImportError as error:
        raise ConfigError(
            f"benchmark.lm_eval.tasks={config.tasks} needs lm-evaluation-harness ({error}); "
            "pip install 'spin-selfplay[lm_eval]', or leave the tasks out"
        ) from error
    # Groups of tasks and patterns such as "mmlu_*" count as known.
    unknown = [task for task in config.tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            f"benchmark.lm_eval.tasks: lm-evaluation-harness knows no {', '.join(unknown)}; "
            "lm_eval ls tasks lists them, include_path adds your own"
        )


def make_task_manager(config: LmEvalConfig) -> Any:
    """Return the harness's index of tasks. Tasks of `include_path` take precedence."""
    from lm_eval.tasks import TaskManager

    if not config.include_path:
        return TaskManager(include_path=None)
    return TaskManager(include_path=str(Path(config.include_path).resolve()))


def evaluate(
    engine: AnsweringEngine,
    make_request: Any,
    policy: Policy,
    renderer: Renderer,
    max_tokens: int,
    max_length: int,
    config: LmEvalConfig,
) -> dict[str, Any]:
    """Run the tasks of `config` and return their results.

    Args:
        engine: Running engine.
        make_request: Function that makes an engine request from prompt ids and a seed.
        policy: Policy to evaluate.
        renderer: The run's renderer, for chats, tokens and stop ids.
        max_tokens: Largest number of tokens of an answer; a task may ask for fewer.
        max_length: Largest length of prompt and answer together, in tokens. A longer prompt loses
            its beginning, as in the harness.
        config: Tasks and their options.

    Returns:
        For each task, its metrics and standard errors under the harness's own names; and
        `truncated_prompts`, the number of prompts that lost their beginning.
    """
    # The harness is imported here because it is an optional extra, and slow to import.
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM

    class EngineLM(TemplateLM):
        """The engine as a model of the harness."""

        # Part of the key under which the harness caches encoded requests.
        tokenizer_name = policy.digest
        truncated_prompts = 0

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = renderer.tokenizer

        @property
        def eot_token_id(self) -> int:
            return renderer.end_id

        @property
        def prefix_token_id(self) -> int:
            """Return the token before a continuation that has no context."""
            return [renderer.end_id, *find_opening(renderer.tokenizer)][-1]

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return encode_prompt(renderer, string, config.apply_chat_template, add_special_tokens)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            """Return the template's source, which the harness writes into its results."""
            if not chat_template:
                return None
            return renderer.template.source

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return renderer.template.render(
                renderer.tokenizer,
                chat_history,
                generation_prompt=add_generation_prompt,
                unfinished=not add_generation_prompt,
            )

        def truncate(self, ids: list[int], num_following: int) -> list[int]:
            """Return the last tokens of a prompt, so that `num_following` more tokens fit."""
            self.truncated_prompts += len(ids) + num_following > max_length
            return ids[-max(1, max_length - num_following) :]

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            pairs = []
            for _, context, answer in requests:
                # `engine.score` generates one more token.
                pairs.append((self.truncate(context, len(answer) + 1), answer))
            return engine.score(policy, pairs)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise ConfigError(
                "benchmark.lm_eval.tasks: one of them measures the perplexity of whole documents, "
                "which is not supported; take it out"
            )

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            # The engine decodes all requests of one call alike: group them.
            groups: dict[Decoding, list[int]] = {}
            for index, request in enumerate(requests):
                groups.setdefault(read_decoding(request.args[1], max_tokens), []).append(index)
            # One call for each group. The texts return to the order of the requests.
            texts = [""] * len(requests)
            for (stop, length, temperature, top_p), indices in groups.items():
                prompts = []
                for index in indices:
                    ids = self.truncate(self.tok_encode(requests[index].args[0]), length)
                    prompts.append(make_request(ids, index))
                answers = engine.generate(policy, prompts, length, temperature, top_p, renderer.stop_ids, stop)
                for index, answer in zip(indices, answers, strict=True):
                    texts[index] = cut_at_stop(renderer.text(answer.token_ids), stop)
            return texts

    # `log_samples` would keep every prompt and answer in the results.
    model = EngineLM()
    found = simple_evaluate(
        model,
        tasks=list(config.tasks),
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        task_manager=make_task_manager(config),
        log_samples=False,
    )
    # The key of a metric is its name and its filter, such as "exact_match,strict-match". A key
    # without a comma describes the task.
    results: dict[str, Any] = {}
    for task, values in found["results"].items():
        results[task] = {}
        for key, value in values.items():
            if "," in key and is_metric(value):
                results[task][key] = value
    results["truncated_prompts"] = model.truncated_prompts
    return results


def encode_prompt(renderer: Renderer, text: str, is_chat: bool, add_special_tokens: bool | None) -> list[int]:
    """Encode a text of a task, without the EOS that some tokenizers add at the end.

    Args:
        renderer: The run's renderer.
        text: A prompt, or a prompt with its continuation.
        is_chat: True if the run's chat template rendered the text. It is then encoded like the
            run's prompts.
        add_special_tokens: False leaves out the BOS; otherwise the text begins with one BOS.
    """
    if add_special_tokens is False:
        return encode_plain(renderer.tokenizer, text)
    if is_chat:
        return renderer.encode(text)
    return encode_text(renderer.tokenizer, text)


def read_decoding(options: dict[str, Any], max_tokens: int) -> Decoding:
    """Return the decoding that a task asks for; it is greedy without `do_sample`."""
    stop = options.get("until") or []
    if isinstance(stop, str):
        stop = [stop]
    length = min(max_tokens, options.get("max_gen_toks", max_tokens))
    temperature = 0.0
    if options.get("do_sample"):
        temperature = float(options.get("temperature", 0.0))
    return tuple(stop), length, temperature, float(options.get("top_p", 1.0))


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop text, or all of it."""
    length = len(text)
    for end in stop:
        position = text.find(end)
        if end and position >= 0:
            length = min(length, position)
    return text[:length]


def is_metric(value: Any) -> bool:
    """Return True for a finite number; the harness gives other values too, such as "N/A"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
