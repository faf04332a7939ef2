"""Set the environment variables that Ray and torch read when they are imported."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from spin.cluster.ray_folder import PREFIX, process_folder
from spin.errors import ConfigError

TOKEN = Path("~/.ray/auth_token")
"""File in which Ray keeps the secret that admits a process to a cluster."""

CLUSTER_FOLDER = Path(f"/tmp/spin-cluster-{os.getuid()}")
"""Folder of the Ray that scripts/cluster.sh starts."""

OWN_TOKEN = secrets.token_hex(32)
"""The secret of the Ray that this process starts. Ray reads it once in a process."""


def prepare_ray(address: str | None) -> None:
    """Set these variables, unless the user has; call this before anything imports Ray or torch.

    Args:
        address: `cluster.address`; None for a cluster on this machine alone.

    Raises:
        ConfigError: Other users can read the token of the cluster.
    """
    # A process that starts itself again finds the folder that it had before.
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if given is None or Path(given).name.startswith(PREFIX):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(process_folder())
    values = {
        # Ray's default niceness of 15 starves the actors beside other work.
        "RAY_worker_niceness": "0",
        # Leave CUDA_VISIBLE_DEVICES alone in actors without a GPU.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if address is None:
        # Other users of this machine reach the ports, and who may talk to Ray may run code as its
        # user: so this cannot be switched off. Only the environments of the run's own processes
        # hold the token.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = OWN_TOKEN
        values |= {
            # The thread that collects Ray's own metrics may crash the driver as Ray shuts down
            # (ray-project/ray#36885). Nothing reads them here.
            "RAY_enable_metrics_collection": "0",
            # Bind the ports to loopback; despite the name, on Linux too.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # After a kill, Ray's processes wait for the GCS: a worker that is starting for five
            # times the first value (5 s by default), an agent on a busy machine for the second
            # (60 s). Here the GCS never comes back: see `spin.cluster.ray_cluster`.
            "RAY_gcs_rpc_server_connect_timeout_s": "2",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        }
    else:
        # With address=auto, Ray reads the address from a file there.
        if CLUSTER_FOLDER.is_dir() and CLUSTER_FOLDER.stat().st_uid == os.getuid():
            values["RAY_TMPDIR"] = str(CLUSTER_FOLDER)
        values |= {
            # A cluster that asks for no token accepts one too.
            "RAY_AUTH_MODE": find_auth_mode(),
            # Behind a port that is not Ray's, Ray would try for ten minutes; so for half a minute.
            "RAY_gcs_server_port_wait_time_s": "1",
        }
    for name, value in values.items():
        os.environ.setdefault(name, value)


def find_auth_mode() -> str:
    """Return ``token`` if there is a token for a cluster, else ``disabled``.

    Raises:
        ConfigError: Other users can read the file of the token.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return "disabled"
    if "RAY_AUTH_TOKEN" in os.environ:
        return "token"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)).expanduser()
    if not path.exists():
        return "disabled"
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path} has mode {mode:04o}: other users can read the token of the cluster and run code as its owner; "
            "expected 0600: delete it and start the cluster again with scripts/cluster.sh, or run chmod 600 if nobody "
            "else uses this machine"
        )
    return "token"
