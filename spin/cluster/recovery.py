"""What follows when actors die or run out of memory, and when the run gives up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError, RayActorError
from rich.text import Text

from spin.config.run import RunConfig
from spin.errors import OutOfMemory

MAX_ATTEMPTS = 4
"""Deaths of actors, without a result or progress in between, after which the run gives up."""

LOST = (RayActorError, OutOfMemoryError, OutOfMemory)
"""Errors of a call whose actor died or ran out of memory."""


class WorkersLost(RuntimeError):
    """Training workers died or ran out of memory; see `WorkerGroups.restart_trainers`."""

    def __init__(self, reason: str, out_of_memory: bool) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


@dataclass
class TokenBudget:
    """The most tokens of one forward pass, the same on all training workers."""

    tokens: int
    automatic: bool
    """Found from the free memory, and not halved yet."""


class TrainingRecovery:
    """Count the deaths of training workers, and halve the token budget when memory ran out."""

    def __init__(
        self, config: RunConfig, print_line: Callable[[str], None], record_halved: Callable[[int], None]
    ) -> None:
        """`record_halved` receives a halved token budget, so that a resumed run keeps to it."""
        self._given_tokens = config.training.micro_batch_tokens
        self._print_line = print_line
        self._record_halved = record_halved
        self.budget: TokenBudget | None = None
        self.deaths = 0
        """Deaths since the last progress."""

    def record_progress(self) -> None:
        """Forget earlier deaths: only deaths in a row count."""
        self.deaths = 0

    def handle_loss(self, lost: WorkersLost) -> None:
        """Decide whether lost workers start again; halve the token budget if memory ran out.

        Raises:
            OutOfMemory: when the budget was given by the user, or was halved before.
            RuntimeError: at the MAX_ATTEMPTS-th death in a row.
        """
        self.deaths += 1
        if lost.out_of_memory and self.budget is not None:
            self._halve_budget(lost, self.budget)
        elif self.deaths >= MAX_ATTEMPTS:
            advice = "if memory was short, lower training.micro_batch_tokens; Ray's logs may say more"
            raise RuntimeError(f"training workers died {MAX_ATTEMPTS} times in a row ({lost}); {advice}")
        else:
            self._print_line(f"warning: a training worker died ({lost}); starting again")

    def _halve_budget(self, lost: WorkersLost, budget: TokenBudget) -> None:
        if self._given_tokens or not budget.automatic:
            tokens = self._given_tokens or budget.tokens
            raise OutOfMemory(
                f"{lost}; lower training.micro_batch_tokens (now {tokens}), or set training.gradient_checkpointing=true"
            )
        self.budget = TokenBudget(budget.tokens // 2, automatic=False)
        self._record_halved(self.budget.tokens)
        self._print_line(
            f"warning: {lost}; once more with half the token budget ({self.budget.tokens:,} tokens a forward pass)"
        )


def to_workers_lost(error: Exception) -> WorkersLost:
    """Describe an error of LOST as the `WorkersLost` that a stage handles."""
    return WorkersLost(first_line(error), isinstance(error, OutOfMemoryError | OutOfMemory))


def too_many_deaths(error: Exception) -> RuntimeError:
    """Return the error after MAX_ATTEMPTS deaths of engines without a result in between."""
    died = f"a generation actor died {MAX_ATTEMPTS} times without a result in between ({first_line(error)})"
    return RuntimeError(f"{died}; if memory was short, lower generation.kv_cache_gib; Ray's logs may say more")


def first_line(error: Exception) -> str:
    """Return the first line of an error or of its cause on the actor, without colour codes."""
    cause = getattr(error, "cause", None) or error
    return Text.from_ansi(str(cause).strip().splitlines()[0]).plain
