"""The model card of a promoted policy: `README.md` in its folder, which no digest covers, so that figures may be added after the promotion."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from spin import __version__
from spin.config.run import RunConfig, fingerprint, to_plain
from spin.report.tables import SHOWN, cell
from spin.run_dir.files import write_text
from spin.run_dir.paths import Stage
from spin.run_dir.store import LOCAL_STORE, RunStore

TEXTS = {
    "exact_match_greedy": "exact match, greedy",
    "exact_match_sampled": "exact match, sampled",
    "nll": "NLL of the truth, nats a token",
    "win_rate": "truth preferred to the opponent's answer",
    "kl_to_start": "KL to the starting policy, nats an answer",
}


def write_card(
    stage: Stage,
    config: RunConfig,
    digest: str,
    before: str,
    figures: dict[str, Any] | None,
    store: RunStore = LOCAL_STORE,
) -> None:
    """Write the card of a stage's policy, unless it says this already.

    `config`: the stage's own, its schedule applied. `before`: the digest of the policy that training started from. `figures`: None before the benchmark.
    """
    path, text = stage.policy / "README.md", card(stage, config, digest, before, figures)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
        store.publish(path)


def card(stage: Stage, config: RunConfig, digest: str, before: str, figures: dict[str, Any] | None) -> str:
    """The card as Markdown with the metadata of the Hugging Face Hub."""
    from huggingface_hub import ModelCardData

    kind = "sft" if not stage.name.startswith("iterations/") else config.objective.name
    training = config.warmup.training if stage.name == "start" else config.training
    data = config.warmup.path or config.data.path if stage.name == "start" else config.data.path
    metadata = ModelCardData(
        base_model=config.model.path if on_hub(config.model.path) else None,
        datasets=[data] if on_hub(data) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["spin", "self-play", kind],
    )
    objective = (
        {"name": kind}
        if kind != config.objective.name
        else {key: value for key, value in to_plain(config.objective).items() if value is not None}
    )
    facts = {
        "base model": config.model.path,
        "data": f"{data} ({config.warmup.split if stage.name == 'start' else config.data.split})",
        "objective": ", ".join(f"{key}={value}" for key, value in objective.items()),
        "stage": stage.label,
        "training": f"learning rate {training.learning_rate:g}, batch size {training.batch_size}, {training.optimizer.name}",
        "seed": config.seed,
        "trained from": before[:12],
        "digest": digest,
        "config digest": hashlib.sha256(json.dumps(fingerprint(config), sort_keys=True).encode()).hexdigest(),
    }
    lines = [
        f"# {stage.label} of {Path(config.run_dir).name}",
        "",
        f"Trained by spin {__version__}, [self-play finetuning](https://arxiv.org/abs/2401.01335).",
        "",
    ]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items()), ""]
    if figures is not None:
        lines += [
            f"On {figures['heldout']} held-out prompts; ±: half the 95 % interval.",
            "",
            "| figure | |",
            "| --- | --- |",
        ]
        lines += [f"| {TEXTS[name]} | {cell(figures[name], figures['intervals'].get(name))} |" for name in SHOWN]
        lines += [""]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines)


def on_hub(path: str) -> bool:
    """Whether a path can be a name on the Hub: ``owner/name``, and no local folder or file."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~", "builtin:")) and not Path(path).exists()
