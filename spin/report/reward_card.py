"""Write the model card of a reward model: `README.md` in its folder. No digest covers it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spin import __version__
from spin.config.run import RunConfig
from spin.data.file_readers import split_subset
from spin.models.reward_export import read_reward_facts
from spin.report.model_card import describe_adapter, is_hub_id, read_licence
from spin.report.reward_figures import list_figures
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import write_text
from spin.run_dir.paths import Stage
from spin.run_dir.store import RunStore

USE = """```python
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained("{folder}")

from vllm import LLM, PoolingParams
llm = LLM("{folder}", runner="pooling")
llm.classify(texts, pooling_params=PoolingParams(use_activation=False))  # the default applies a sigmoid
```"""


def write_reward_card(
    stage: Stage, config: RunConfig, facts: PolicyFacts, figures: dict[str, Any], store: RunStore
) -> None:
    """Write the card of a reward model, unless the file is up to date."""
    path = stage.reward_model / "README.md"
    text = format_reward_card(stage, config, facts, figures)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
        store.publish(path)


def format_reward_card(stage: Stage, config: RunConfig, facts: PolicyFacts, figures: dict[str, Any]) -> str:
    """Return the card as Markdown with the metadata of the Hugging Face Hub."""
    from huggingface_hub import ModelCardData

    settings = config.reward_model
    # The set of the run, and its own samples.
    sources = []
    if settings.data_path is not None:
        sources.append(f"{settings.data_path} ({settings.split})")
    if stage.index >= 0:
        sources.append(f"samples of iteration 0 to {stage.index}, ranked by {settings.refresh_by}")
    # The Hub takes only names that exist there, no local paths.
    base_model = datasets = None
    if is_hub_id(config.model.path):
        base_model = config.model.path
    if settings.data_path is not None and is_hub_id(settings.data_path):
        datasets = [split_subset(settings.data_path)[0]]
    metadata = ModelCardData(
        base_model=base_model,
        datasets=datasets,
        **read_licence(config.model.path),
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["spin", "reward-model"],
    )
    # The table of facts.
    training = settings.training
    reward_facts = read_reward_facts(stage.reward_model)
    # Each reward model begins with a new adapter, which is merged at the end.
    adapter = describe_adapter(replace(config.adapter, path=None))
    rows = {
        "base model": config.model.path,
        "data": ", ".join(sources),
        "loss": f"Bradley-Terry, center_coefficient={settings.center_coefficient:g}, ties={settings.ties.name}",
        "training": f"learning rate {training.learning_rate:g}, {training.batch_size} prompts a step",
        "adapter": adapter,
        "steps": str(facts.steps),
        "bias": f"{reward_facts.bias:.6g}, subtracted from the score (center={settings.center.name})",
        "trained from": facts.opponent[:12],
        "digest": facts.digest,
    }
    # The text: what it is, how to load it, facts, figures.
    lines = [
        "# Reward model",
        "",
        f"Trained by spin {__version__} on ranked answers ([arXiv 2203.02155](https://arxiv.org/abs/2203.02155)).",
        "The score is that of the last token of prompt and answer, rendered with the chat template.",
        "",
        USE.format(folder=stage.reward_model.name),
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {name} | {value} |" for name, value in rows.items() if value is not None],
        "",
        f"On {figures['prompts']} held-out rankings with {figures['pairs']} pairs; 95 % intervals over prompts.",
        "",
        "| figure | |",
        "| --- | --- |",
        *[f"| {title} | {value} |" for title, value in list_figures(figures)],
        "",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines)
