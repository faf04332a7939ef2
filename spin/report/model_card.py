"""Write the model card of a promoted policy: `README.md` in its folder.

No digest covers the card, so that metrics can be added after the promotion.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from spin import __version__
from spin.config.adapter import AdapterConfig
from spin.config.run import RunConfig, fingerprint, to_plain
from spin.data.file_readers import split_subset
from spin.report.metric_titles import HEADINGS, title_of
from spin.report.tables import cell
from spin.run_dir.files import write_text
from spin.run_dir.paths import Stage
from spin.run_dir.store import LOCAL_STORE, RunStore


def write_card(
    stage: Stage,
    config: RunConfig,
    digest: str,
    before: str,
    metrics: dict[str, Any] | None,
    store: RunStore = LOCAL_STORE,
    baseline: dict[str, Any] | None = None,
) -> None:
    """Write the card of a stage's policy, unless the file is up to date.

    Args:
        config: the stage's own, with its schedule applied.
        digest: of the policy.
        before: the digest of the policy that training started from.
        metrics: the content of benchmark.json; None before the benchmark.
        store: Publishes the card.
        baseline: benchmark.json of the baseline with as many training steps; None without one.
    """
    path = stage.policy / "README.md"
    text = format_card(stage, config, digest, before, metrics, baseline)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
        store.publish(path)


def format_card(
    stage: Stage,
    config: RunConfig,
    digest: str,
    before: str,
    metrics: dict[str, Any] | None,
    baseline: dict[str, Any] | None,
) -> str:
    """Return the card as Markdown with the metadata of the Hugging Face Hub.

    The arguments are those of `write_card`.
    """
    from huggingface_hub import ModelCardData

    # The warm start and the baseline are supervised finetuning. Settings that are null are not
    # used, so they are left out.
    objective = {"name": "sft"}
    if stage.name.startswith("iterations/"):
        for key, value in to_plain(config.objective).items():
            if value is not None:
                objective[key] = value
    # The warm start may have data of its own.
    training, data, split = config.training, config.data.path, config.data.split
    if stage.name == "start":
        training, data, split = config.warmup.training, config.warmup.path or data, config.warmup.split

    # The metadata of the Hub. It takes only names that exist there, no local paths.
    base_model = datasets = None
    if is_hub_id(config.model.path):
        base_model = config.model.path
    if is_hub_id(data):
        datasets = [split_subset(data)[0]]
    tags = ["spin", "self-play", objective["name"]]
    if config.adapter.enabled:
        tags.append("lora")
    licence = read_licence(config.model.path)
    metadata = ModelCardData(
        base_model=base_model,
        datasets=datasets,
        **licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )

    # The table of facts. The digest of the config tells whether two runs had the same settings.
    config_json = json.dumps(fingerprint(config), sort_keys=True)
    optimizer = training.optimizer.name
    facts = {
        "base model": config.model.path,
        "licence of the base model": licence.get("license_name") or licence.get("license"),
        "data": f"{data} ({split})",
        "objective": ", ".join(f"{key}={value}" for key, value in objective.items()),
        "stage": stage.label,
        "training": f"learning rate {training.learning_rate:g}, batch size {training.batch_size}, {optimizer}",
        "adapter": describe_adapter(config.adapter),
        "seed": config.seed,
        "trained from": before[:12],
        "digest": digest,
        "config digest": hashlib.sha256(config_json.encode()).hexdigest(),
    }
    lines = [
        f"# {stage.label} of {Path(config.run_dir).name}",
        "",
        f"Trained by spin {__version__}, [self-play finetuning](https://arxiv.org/abs/2401.01335).",
        "",
        "| | |",
        "| --- | --- |",
    ]
    lines += [f"| {key} | {value} |" for key, value in facts.items() if value is not None]
    lines.append("")
    # The table of metrics, if the policy was benchmarked.
    if metrics is not None:
        lines += format_metrics(metrics, baseline)
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines)


def format_metrics(metrics: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    """Return a table of metrics in Markdown, with a column for the baseline if there is one."""
    lines = [f"On {metrics['heldout']} held-out prompts; ±: half the 95 % interval.", ""]
    policies = [metrics]
    if baseline is None:
        lines += ["| metric | |", "| --- | --- |"]
    else:
        policies.append(baseline)
        lines += ["| metric | this model | supervised finetuning, as many steps |", "| --- | --- | --- |"]
    for name in HEADINGS:
        cells = [cell(values[name], values["intervals"].get(name)) for values in policies]
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    lines.append("")
    return lines


def read_licence(model_path: str) -> dict[str, str]:
    """Return the licence of a model as its own card names it, by the keys of the Hub's metadata.

    Empty without such a card: a model that is not on the Hub and in no folder, or a card that names
    no licence.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    card: Any = Path(model_path) / "README.md"
    if is_hub_id(model_path):
        card = try_to_load_from_cache(model_path, "README.md")
    # The cache answers with None, or with a mark for files that the repository does not have.
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return {}
    try:
        metadata = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):
        # A card of another tool, without metadata that can be read.
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: metadata[key] for key in keys if isinstance(metadata.get(key), str)}


def describe_adapter(adapter: AdapterConfig) -> str | None:
    """Return what is trained beside frozen weights; None without adapters."""
    if not adapter.enabled:
        return None
    if adapter.path is not None:
        return f"LoRA, begun from {adapter.path}"
    targets = adapter.targets
    if not isinstance(targets, str):
        targets = ", ".join(targets)
    return f"LoRA on {targets}, rank {adapter.rank}, alpha {adapter.alpha:g}"


def is_hub_id(path: str) -> bool:
    """Return True for a path that can be a name on the Hub: ``owner/name``, not a local path."""
    if path.startswith((".", "/", "~", "builtin:")):
        return False
    return path.count("/") == 1 and not Path(path).exists()
