"""What several test files share."""

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: on a busy machine two threads wait for each other, twenty times as long on tiny models

import pytest  # noqa: E402

from tests.runs import run  # noqa: E402


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a small undisturbed run; tests copy it before they change it."""
    run_dir = tmp_path_factory.mktemp("run") / "undisturbed"
    run(run_dir)
    return run_dir
