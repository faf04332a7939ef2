"""Tell whether an answer to a held-out prompt is right: by exact match or by a function."""

from __future__ import annotations

from collections.abc import Callable

from spin.config.run import RunConfig, import_target
from spin.data.answer_matching import is_right
from spin.data.records import Prompt, Sample

Verifier = Callable[[Prompt, Sample], bool]
"""Returns whether an answer to a prompt is right."""


def make_verifier(config: RunConfig) -> Verifier:
    """Return the function of `benchmark.verifier`, or else the exact match with the ground truth.

    A truncated answer is never right. The verifier raises RuntimeError when the function fails.
    """
    target = config.benchmark.verifier
    if target is None:
        return lambda prompt, sample: is_right(prompt, sample, config.data.answer_pattern)
    function = import_target("benchmark.verifier", target)

    def verify(prompt: Prompt, sample: Sample) -> bool:
        if sample.finish_reason != "stop":
            return False
        # Name the prompt, so that the author of the function can repeat the call.
        try:
            return float(function(prompt.prompt_text, sample.text, prompt.completion_text)) > 0.5
        except Exception as error:  # whatever a user's function can raise
            raise RuntimeError(
                f"benchmark.verifier={target} failed for held-out prompt {prompt.prompt_id}, answer "
                f"{sample.text!r}: {type(error).__name__}: {error}"
            ) from error

    return verify
