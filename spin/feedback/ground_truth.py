"""SPIN's labels: the ground truth is chosen, the opponent's sample is rejected. Nobody judges."""

from __future__ import annotations

from spin.data.records import Pair, Prompt, Sample


class GroundTruth:
    """Feedback is a callable `label(prompt, samples, iteration) -> pairs`; the reference's log-probabilities are filled in by the score stage."""

    def label(self, prompt: Prompt, samples: list[Sample], iteration: int) -> list[Pair]:
        """One pair a sample of this prompt."""
        return [
            Pair(
                prompt_id=prompt.prompt_id,
                sample_index=sample.sample_index,
                source="self-play",
                iteration=iteration,
                prompt_ids=prompt.prompt_ids,
                chosen_ids=prompt.completion_ids,
                rejected_ids=sample.completion_ids,
                reference_chosen_logp=float("nan"),
                reference_rejected_logp=float("nan"),
                sampler_rejected_logp=sample.logp,
            )
            for sample in samples
        ]
