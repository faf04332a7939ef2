"""Check that every node of a cluster has what a run needs."""

from __future__ import annotations

import uuid
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spin import __version__
from spin.errors import ConfigError
from spin.run_dir.store import RunStore

NODE_SECONDS = 60
"""Seconds that a node has to answer; it starts a Python process first."""


@ray.remote(num_cpus=0)
def _find_problem(token: str, text: str, paths: list[str], version: str, store: RunStore) -> str | None:
    """Return what a run needs and the node that runs this does not have; None if it has all."""
    # The package.
    try:
        from spin import __version__
    except ImportError:
        return "does not have spin installed"
    if __version__ != version:
        return f"has spin {__version__}, not {version}"

    # The run directory.
    store.fetch(Path(token))
    if not Path(token).exists() or Path(token).read_text() != text:
        run_dir = store.remote.url if store.remote else Path(token).parent
        return f"does not see {run_dir}"

    # The model and other paths.
    for path in paths:
        store.fetch(Path(path))
        if not Path(path).exists():
            return f"does not see {path}"
    return None


def check_nodes(run_dir: Path, paths: list[str], store: RunStore) -> None:
    """Check that every node of the cluster has what a run needs.

    Args:
        run_dir: The run directory as this machine sees it.
        paths: Files or folders that must exist on every node.
        store: The store of the run directory.

    Raises:
        ConfigError: A node does not see the run directory or a path, has another version of spin,
            or does not answer.
    """
    # Write a token that no other run directory has.
    token = run_dir / "seen"
    text = uuid.uuid4().hex
    token.write_text(text)
    store.publish(token)
    try:
        # Ask all nodes at once.
        calls = {}
        for node in ray.nodes():
            if node["Alive"]:
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = _find_problem.options(scheduling_strategy=on_node)
                calls[task.remote(str(token), text, paths, __version__, store)] = node["NodeManagerHostname"]
        for call, name in calls.items():
            try:
                problem = ray.get(call, timeout=NODE_SECONDS)
            except RayError as error:
                last_line = str(error).strip().splitlines()[-1]
                problem = f"does not answer ({last_line}); is the same Python with spin installed there?"
            if problem:
                raise ConfigError(
                    f"cluster node {name} {problem}; expected the same files and packages on every node: run_dir and "
                    "the model on storage that all mount"
                )
    finally:
        store.delete(token)
