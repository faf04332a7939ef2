"""What several test files share."""

from pathlib import Path

import pytest

from tests.runs import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small run that nothing disturbed; tests copy it before they change anything."""
    run_dir = tmp_path_factory.mktemp("run") / "undisturbed"
    run(run_dir)
    return run_dir
