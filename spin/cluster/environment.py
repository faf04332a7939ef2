"""Set the environment variables that Ray reads when it is imported."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TOKEN = Path("~/.ray/auth_token")
"""File in which Ray keeps the secret that admits a process to a cluster."""


def prepare_ray(address: str | None) -> None:
    """Set Ray's variables, unless the user has set them; call this before anything imports Ray.

    Args:
        address: `cluster.address`; None for a cluster on this machine alone.
    """
    values = {
        # Ray's default niceness of 15 starves the actors beside other work.
        "RAY_worker_niceness": "0",
        # Leave CUDA_VISIBLE_DEVICES alone in actors without a GPU.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if address is None:
        values |= {
            # Bind the ports to loopback; despite the name, on Linux too.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Other users of this machine reach the ports, and who may talk to Ray may run code as
            # its user. Only the environments of the run's own processes hold this token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # After a kill, Ray's processes wait for the GCS: a worker that is starting for five
            # times the first value (5 s by default), an agent on a busy machine for the second
            # (60 s). Here the GCS never comes back: see `spin.cluster.ray_cluster`.
            "RAY_gcs_rpc_server_connect_timeout_s": "2",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        }
    else:
        token_path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)).expanduser()
        has_token = "RAY_AUTH_TOKEN" in os.environ or token_path.exists()
        auth_mode = "disabled"
        if has_token:
            auth_mode = "token"
        values |= {
            # A cluster that asks for no token accepts one too.
            "RAY_AUTH_MODE": auth_mode,
            # Behind a port that is not Ray's, Ray would try for ten minutes; so for half a minute.
            "RAY_gcs_server_port_wait_time_s": "1",
        }
    for name, value in values.items():
        os.environ.setdefault(name, value)
