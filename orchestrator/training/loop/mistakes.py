"""Mistakes in a script's loop that would cost the run at its next resume, and are said at once."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from orchestrator.training.exits import print_message

# Fewer steps say too little about how steps and optimizer steps go together.
ENOUGH_STEPS = 8


class LoopMistakes:
    """Looks for mistakes at the first saves and at the end, and says each once.

    Attributes:
        asked: Whether the loop has asked the session for its epochs, its steps, its batches or
            where it is.
        rounds: How many rounds of ``session.steps()`` have begun.
    """

    def __init__(self, steps_at_start: int, plain_state: Mapping[str, Any]) -> None:
        """``plain_state`` is the session's dict, in which a loop may count its rounds itself."""
        self.asked = False
        self.rounds = 0
        self._steps_at_start = steps_at_start
        self._plain_state = plain_state
        self._said: set[str] = set()
        self._counts: weakref.WeakKeyDictionary[torch.optim.Optimizer, int]
        self._counts = weakref.WeakKeyDictionary()
        self._hook: Any = None

    def begin(self) -> None:
        """Begin to count the steps of all optimizers; ``close`` ends it."""
        self._hook = register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self._counts[optimizer] = self._counts.get(optimizer, 0) + 1

    def check(self, registered: Iterable[Any], step: int, *, at_end: bool = False) -> None:
        """Say what is wrong after ``step`` steps; once there were enough, nothing is counted."""
        if self._hook is None:
            return
        done = step - self._steps_at_start
        if at_end and done == 0 and step == 0 and self._counts:
            self._say(
                "session.step() was never called, so that nothing could be saved on the way and a "
                "resume would begin at step 0: write session.step(loss=loss) after each "
                "optimizer.step()"
            )
        if done > 0 and not self.asked and not self._may_count_itself():
            self._say(
                "the loop does not ask the session where it is; if it is over range(N), a resumed "
                "run will do all of its rounds again: write `for epoch in session.epochs(N)` or "
                "`for step in session.steps(N)`"
            )
        self._check_optimizers(list(registered), done)
        if done >= ENOUGH_STEPS or at_end:
            self.close()

    def say_rounds(self) -> None:
        """Say what a resumed run does with passes over the data that no epoch of its own holds."""
        self._say(
            "the loop makes several passes over the data outside of session.epochs(): a resumed "
            "run must begin at the first one again, does what stands around each of them again, "
            "and leaves data out if it begins at a later one; write `for epoch in "
            "session.epochs(N)`"
        )

    def _may_count_itself(self) -> bool:
        """Return whether the plain state holds more than a loss or a name."""
        values = self._plain_state.values()
        return any(isinstance(v, bool) or not isinstance(v, float | str | None) for v in values)

    def _check_optimizers(self, registered: list[Any], done: int) -> None:
        optimizers = [o for o in registered if isinstance(o, torch.optim.Optimizer)]
        counts = dict(self._counts)
        for optimizer, count in counts.items():
            if count > 1 and not _is_covered(optimizer, registered):
                self._say(
                    f"an optimizer ({type(optimizer).__name__}) is stepped and not registered, so "
                    "that its state is lost on a resume: write Session(..., "
                    f"{'optimizer' if not optimizers else 'other_optimizer'}=optimizer)"
                )
        most = max((counts.get(optimizer, 0) for optimizer in optimizers), default=0)
        if self.rounds:
            # A round may well do without the optimizer, as in reinforcement learning.
            self._check_count(done, self.rounds, "rounds of session.steps(): call it once in each")
        elif most:
            self._check_count(
                done,
                most,
                "steps of the optimizer: call it once after each optimizer.step(), since it counts "
                "the step and the batch",
            )
        modules = [m for m in registered if isinstance(m, torch.nn.Module)]
        owned = {id(parameter) for module in modules for parameter in module.parameters()}
        for optimizer in optimizers:
            works_on = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if modules and works_on and not works_on & owned:
                self._say(
                    f"the registered optimizer ({type(optimizer).__name__}) works on no registered "
                    "model: make it from the parameters of the model that is registered, as in "
                    "optimizer = torch.optim.Adam(model.parameters())"
                )

    def _check_count(self, done: int, expected: int, what: str) -> None:
        if done >= max(ENOUGH_STEPS, 1.5 * expected):
            self._say(f"session.step() was called {done} times for {expected} {what}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print_message(f"warning: {text}")

    def close(self) -> None:
        """Stop counting."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _is_covered(optimizer: torch.optim.Optimizer, registered: Iterable[Any]) -> bool:
    """Return whether the optimizer is registered, or an object of the script's own holds it."""
    for value in registered:
        if value is optimizer:
            return True
        # A scheduler holds its optimizer too, and does not save it.
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            continue
        held = list(getattr(value, "__dict__", {}).values())
        held += [item for each in held if isinstance(each, list | tuple) for item in each]
        if any(each is optimizer for each in held):
            return True
    return False
