"""Prompts, samples and configs that are small enough to work out every reward by hand."""

from typing import Any

from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.data.records import Prompt, Sample
from spin.feedback.sample_group import SampleGroup


def make_prompt(prompt_id: int, answer: str | None = "4") -> Prompt:
    """A prompt whose target is the tokens 5, 2: the text "It is 4" with the answer 4."""
    return Prompt(prompt_id, [1, 9, prompt_id], [5, 2], "stop", "2 + 2?", "It is 4", answer)


def make_sample(prompt_id: int, index: int, text: str, finish: str = "stop") -> Sample:
    """A sample whose tokens are 7 and its own index."""
    return Sample(prompt_id, index, [7, index], finish, -1.5 - index, text)


def make_group(*texts: str, prompt_id: int = 3, answer: str | None = "4") -> SampleGroup:
    """One prompt with a sample of each text, of iteration 2."""
    samples = [make_sample(prompt_id, index, text) for index, text in enumerate(texts)]
    return SampleGroup(make_prompt(prompt_id, answer), samples, 2)


def make_config(samples_per_prompt: int = 4, **feedback: Any) -> RunConfig:
    """The config of a run with these keys of `feedback`."""
    return RunConfig(
        "run",
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        generation=GenerationConfig(samples_per_prompt=samples_per_prompt),
        feedback=FeedbackConfig(**feedback),
        objective=SpinObjective(),
    )


class TextLength:
    """A reward source as a user writes it: the length of the text, up to `most`."""

    def __init__(self, config: RunConfig, most: int) -> None:
        self.most = most

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        return [[float(min(self.most, len(sample.text))) for sample in group.samples] for group in groups]


TEXT_LENGTH = "tests.feedback.samples.TextLength"


def has_length_of_truth(prompt: str, answer: str, truth: str, tolerance: int = 0) -> bool:
    """A reward function as a user writes it."""
    return abs(len(answer) - len(truth)) <= tolerance


SAME_LENGTH = "tests.feedback.samples.has_length_of_truth"


def share_of_letters(prompt: str, answer: str, truth: str) -> float:
    """A reward function that fails for an empty answer."""
    return sum(character.isalpha() for character in answer) / len(answer)
