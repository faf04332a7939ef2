"""What Ray reads from the environment when it is imported; so this must be called before anything imports it."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN = Path("~/.ray/auth_token")
"""Where Ray keeps the secret that lets a process into a cluster."""


def prepare_ray(address: str | None) -> None:
    """Set the variables for a cluster at `address`, or for one of this machine's own. What the user has set stays."""
    given = {
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # a nice of 15 starves beside other work
    if address is None:
        given |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # ports on loopback, on Linux too
            "RAY_AUTH_MODE": "disabled",  # nobody else reaches them
            # What Ray leaves when it is killed waits for its GCS to come back: a worker that is just starting five times the first (25 s by default), an agent
            # on a busy machine the second (60 s). Here it never comes back: `spin.cluster.ray_cluster.watched`.
            "RAY_gcs_rpc_server_connect_timeout_s": "2",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        }
    else:
        known = (
            "RAY_AUTH_TOKEN" in os.environ or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)).expanduser().exists()
        )
        given |= {
            "RAY_AUTH_MODE": "token" if known else "disabled",  # a cluster that asks for none takes one too
            "RAY_gcs_server_port_wait_time_s": "1",  # behind a port that is not Ray's, Ray would try for ten minutes: now for half a one
        }
    for name, value in given.items():
        os.environ.setdefault(name, value)
