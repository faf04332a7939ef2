"""Export one promoted policy as a folder of its own, and to the Hub if asked (`spin export`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from spin.config.load import load_config
from spin.config.training import Dtype
from spin.errors import ConfigError
from spin.models.policy import Policy, check_adapter, check_policy, policy_digest
from spin.models.policy_export import convert_folder
from spin.models.stage_policy import make_stage_policy
from spin.report.export_adapter import export_form
from spin.run_dir.facts import PolicyFacts, read_facts
from spin.run_dir.files import write_folder_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import read_state
from spin.run_dir.store import open_store
from spin.run_dir.unit import kind_name

FORMS = ("merged", "adapter")
"""Values of `weights`: a whole model, or the adapter alone."""

REWARD_MODEL = "reward_model"
"""The value of `iteration` that names the reward model of a run."""


def export(
    run_dir: str,
    iteration: str,
    to: str,
    push_to_hub: str | None = None,
    weights: str = "merged",
    dtype: str | None = None,
) -> None:
    """Copy one promoted policy to a folder, and push it to the Hub if `push_to_hub` is given.

    A run keeps its policies in float32, from which training goes on. The copy has the dtype in
    which the engine of the run loads them. Adapters and reward models stay in float32.

    Args:
        run_dir: Run directory, or its URL.
        iteration: Number of the iteration, ``best``, or ``reward_model``.
        to: Folder to write, which must be absent or empty.
        push_to_hub: ``owner/name`` of a repository on the Hub; None for no push.
        weights: ``merged`` for a whole model, ``adapter`` for the PEFT folder of its adapter.
        dtype: ``float32`` or ``bfloat16`` for a whole policy; None for `model.dtype` of the run.

    Raises:
        ConfigError: There is no such policy, adapter or dtype, or `to` is not empty.
        CheckpointError: The digest of the policy is not the one that was promoted.
    """
    # Refuse what can be refused before the policy is looked for.
    store = open_store(run_dir)
    layout = RunLayout(store.root)
    target = Path(to)
    if not layout.ledger.is_file() or not layout.config.is_file():
        raise ConfigError(
            f"run_dir={run_dir} holds no run (no config.yaml and ledger.jsonl); "
            "expected the folder that spin run was given"
        )
    if push_to_hub is not None and push_to_hub.count("/") != 1:
        raise ConfigError(f"push_to_hub={push_to_hub}: expected owner/name")
    if weights not in FORMS:
        raise ConfigError(f"weights={weights}: expected {' or '.join(FORMS)}")
    if dtype is not None:
        check_dtype(dtype, weights, iteration)
    check_target(target)

    # Find the policy. Its digest is the one that was promoted.
    ledger = Ledger(layout.ledger, read_only=True)
    stage = find_stage(layout, ledger, iteration)
    facts = ledger.get(kind_name(stage, stage.promoted_kind))
    if facts is None:
        raise ConfigError(
            f"iteration={iteration}: {stage.label} of {run_dir} is the model that the run was given (model.path): "
            "there is nothing to export"
        )
    if facts.get("dropped"):
        raise ConfigError(
            f"iteration={iteration}: the policy of {stage.label} was deleted (keep.policies); "
            "expected best, or one of the newest iterations"
        )
    policy = make_stage_policy(stage, read_facts(facts, PolicyFacts))
    if weights == "adapter" and iteration == REWARD_MODEL:
        raise ConfigError(f"weights=adapter: the {stage.label} of {run_dir} is a whole model; leave it out")
    if weights == "adapter" and policy.adapter is None:
        raise ConfigError(f"weights=adapter: {stage.label} of {run_dir} was trained without adapters; leave it out")
    store.fetch(stage.promoted)
    check_policy(policy)

    # Copy it, and check the copy too. An adapter is copied, or added to its base.
    model = load_config(layout.config).model
    dtype = dtype or model.dtype.name
    if policy.adapter is not None and (weights == "adapter" or policy.is_adapter):
        store.fetch(Path(policy.adapter.path))
        check_adapter(policy)
        digest = export_form(policy, policy.adapter, target, weights, dtype, model)
    elif dtype == model.dtype.name == Dtype.float32.name or iteration == REWARD_MODEL:
        write_folder_atomically(target, lambda temporary: _copy(stage.promoted, temporary))
        check_policy(Policy(str(target), policy.digest))
        digest = policy.digest
    else:
        write_folder_atomically(target, lambda temporary: _copy(stage.promoted, temporary, dtype))
        digest = policy_digest(target)
    form = f"digest {digest[:12]}"
    if weights != "adapter" and iteration != REWARD_MODEL:
        form += f", {dtype}"
    print(f"{stage.label} of {run_dir} is in {target} ({form})")
    if push_to_hub is not None:
        push_folder(target, push_to_hub)


def check_dtype(dtype: str, weights: str, iteration: str) -> None:
    """Raise ConfigError when a dtype is unknown, or what is exported has no choice of it."""
    names = [member.name for member in Dtype]
    if dtype not in names:
        raise ConfigError(f"dtype={dtype}: expected {' or '.join(names)}")
    if weights == "adapter" or iteration == REWARD_MODEL:
        raise ConfigError(
            f"dtype={dtype}: adapters and reward models are exported in float32, as they were trained; leave it out"
        )


def check_target(target: Path) -> None:
    """Raise ConfigError when the folder is inside a run directory, or is not empty."""
    for folder in (target.absolute(), *target.absolute().parents):
        if RunLayout(folder).ledger.exists():
            raise ConfigError(f"to={target} lies inside the run directory {folder}; give a folder outside of it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"to={target} exists and is not empty; give another folder")


def find_stage(layout: RunLayout, ledger: Ledger, iteration: str) -> Stage:
    """Return the stage that `iteration` names: a number, ``best``, or ``reward_model``.

    Raises:
        ConfigError: The stage has not been promoted, or the run has no benchmark.
    """
    if iteration == REWARD_MODEL:
        # The newest one, if iterations have trained it again.
        trained = read_state(layout, ledger).stages("reward_model")
        if not trained:
            raise ConfigError(
                f"iteration=reward_model: {layout.root} has trained no reward model; "
                "expected best, or the number of an iteration"
            )
        return trained[-1]
    if iteration == "best":
        best = ledger.get("best")
        if best is None:
            raise ConfigError(
                f"iteration=best: {layout.root} has no benchmark, so its best policy is not known; "
                "give a number, or benchmark it (spin run … benchmark.enabled=true)"
            )
        return Stage(layout.root, best["policy"])
    promoted = [stage for stage in read_state(layout, ledger).stages("policy") if stage.name.startswith("iterations/")]
    if not iteration.isdigit() or int(iteration) >= len(promoted):
        expected = "a run that has promoted an iteration"
        if promoted:
            expected = f"a number from 0 to {len(promoted) - 1}"
        raise ConfigError(f"iteration={iteration}: expected best, or {expected}")
    return promoted[int(iteration)]


def push_folder(folder: Path, name: str) -> None:
    """Upload a folder to the Hub. Raises ConfigError when the Hub refuses it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        url = api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"spin export: {folder.name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        # The errors of the Hub have several lines, or none.
        reason = type(error).__name__
        if str(error):
            reason = str(error).splitlines()[0]
        way_out = f"the policy is in {folder}: hf auth login, then hf upload {name} {folder}"
        raise ConfigError(f"push_to_hub={name}: the Hub refused it ({reason}); {way_out}") from error
    print(f"pushed to {url}")


def _copy(source: Path, temporary: Path, dtype: str | None = None) -> None:
    """Copy a folder, and convert its weights if a dtype is given."""
    shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tmp"))
    if dtype is not None:
        convert_folder(temporary, dtype)
