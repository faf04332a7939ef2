"""What several test files share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: on a busy machine two threads wait for each other, twenty times as long on tiny models

import pytest  # noqa: E402

from tests.runs import run  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def environment_of_the_module() -> Iterator[None]:
    """Undo what an engine in the test's process sets for a process of its own.

    The compiler reads its switch when it is imported, which can be while an engine has it off.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if "torch._dynamo.config" in sys.modules:
        sys.modules["torch._dynamo.config"].disable = False


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a small undisturbed run; tests copy it before they change it."""
    run_dir = tmp_path_factory.mktemp("run") / "undisturbed"
    run(run_dir)
    return run_dir
