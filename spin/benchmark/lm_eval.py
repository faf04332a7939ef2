"""lm-evaluation-harness on the engine that the run has up already: its tasks, our weights, no second engine.

An optional extra (`pip install 'spin[lm_eval]'`). Not here: perplexity of whole documents (`loglikelihood_rolling`), which needs windows over long texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from spin.config.benchmark import LmEvalConfig
from spin.errors import ConfigError
from spin.models.policy import Policy


class Answers(Protocol):
    """What is asked of an engine: see `spin.generation.engine.Engine`."""

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
    """Raise ConfigError unless the harness is installed and knows every task."""
    if not config.tasks:
        return
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise ConfigError(
            f"benchmark.lm_eval.include_path={config.include_path}: no such folder; expected one with task YAML files"
        )
    try:
        manager = task_manager(config)
    except ImportError as error:
        raise ConfigError(
            f"benchmark.lm_eval.tasks={config.tasks} needs lm-evaluation-harness ({error}); pip install 'spin[lm_eval]', or leave the tasks out"
        ) from error
    unknown = [task for task in config.tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            f"benchmark.lm_eval.tasks: lm-evaluation-harness knows no {', '.join(unknown)}; lm_eval ls tasks lists them, include_path adds your own"
        )


def task_manager(config: LmEvalConfig) -> Any:
    """The harness's index of tasks, those of `include_path` first."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(Path(config.include_path).resolve()) if config.include_path else None)


def evaluate(
    engine: Answers,
    make_request: Any,
    policy: Policy,
    tokenizer: Any,
    stop_ids: Sequence[int],
    max_tokens: int,
    max_length: int,
    config: LmEvalConfig,
) -> dict[str, Any]:
    """Run the tasks. Returns, task by task, its metrics with their standard errors under the harness's own names.

    `make_request`: from prompt ids and a seed, what the engine takes. `max_tokens`: of an answer, where the task does not say less.
    `max_length`: prompt and answer, in tokens; longer prompts lose their beginning, as in the harness, and are counted as `cut_prompts`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM

    class EngineLM(TemplateLM):
        """The harness's view of our engine."""

        tokenizer_name = policy.digest
        cut_prompts = 0

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return stop_ids[0]

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            if add_special_tokens is None:  # a rendered chat carries its own
                bos = getattr(tokenizer, "bos_token", None)
                add_special_tokens = not (bos and string.startswith(bos))
            return tokenizer.encode(string, add_special_tokens=add_special_tokens)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        def room(self, ids: list[int], wanted: int) -> list[int]:
            """The end of a prompt that leaves `wanted` tokens for what follows."""
            self.cut_prompts += len(ids) + wanted > max_length
            return ids[-max(1, max_length - wanted) :]

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            return engine.score(
                policy, [(self.room(context, len(answer) + 1), answer) for _, context, answer in requests]
            )

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise ConfigError(
                "benchmark.lm_eval.tasks: one of them measures the perplexity of whole documents, which is not done here; take it out"
            )

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            answers: dict[int, str] = {}
            kinds: dict[tuple[tuple[str, ...], int, float, float], list[int]] = {}
            for at, request in enumerate(requests):
                options = request.args[1]
                until = options.get("until") or []
                length = min(max_tokens, options.get("max_gen_toks", max_tokens))
                heat = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
                kinds.setdefault(
                    (
                        tuple([until] if isinstance(until, str) else until),
                        length,
                        heat,
                        float(options.get("top_p", 1.0)),
                    ),
                    [],
                ).append(at)
            for (until, length, heat, top_p), places in kinds.items():  # one call for all that are asked alike
                prompts = [make_request(self.room(self.tok_encode(requests[at].args[0]), length), at) for at in places]
                for at, answer in zip(
                    places, engine.generate(policy, prompts, length, heat, top_p, stop_ids, until), strict=True
                ):
                    text = tokenizer.decode(
                        [i for i in answer.token_ids if i not in stop_ids], skip_special_tokens=True
                    )
                    answers[at] = min((text.split(end, 1)[0] for end in until if end), key=len, default=text)
            return [answers[at] for at in range(len(requests))]

    model = EngineLM()
    found = simple_evaluate(
        model,
        tasks=list(config.tasks),
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        task_manager=task_manager(config),
        log_samples=False,
    )
    # A metric's key is its name and its filter, "exact_match,strict-match"; what has no filter is about the task.
    results = {
        task: {key: value for key, value in metrics.items() if "," in key and usable(value)}
        for task, metrics in found["results"].items()
    }
    return {**results, "cut_prompts": model.cut_prompts}


def usable(value: Any) -> bool:
    """Whether a metric is a finite number: the harness also gives names, and "N/A" for an error that it does not know."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
