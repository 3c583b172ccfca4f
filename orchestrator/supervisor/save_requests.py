"""Requests to save now, and the answers to those who made them."""

import asyncio
from collections.abc import Callable

import structlog

from orchestrator.ipc.control_page import Field
from orchestrator.ipc.messages import Message
from orchestrator.supervisor.run_facts import RunFacts

NO_SAVING_ON_DEMAND = (
    "with --adopt the script decides when it saves: it cannot be asked to save now"
)
NO_TRAINER = "no trainer is running now"

Answer = Callable[[Message], None]


class SaveRequests:
    """Saves on demand: for `orchestrator checkpoint`, for SIGUSR2 and for events of the host.

    A request is answered by the next save, with ``published`` or with ``failed``.
    """

    def __init__(self, facts: RunFacts, is_possible: bool) -> None:
        """``is_possible``: whether the trainer has a session, which saves on demand."""
        self._facts = facts
        self._is_possible = is_possible
        self._waiting: list[Answer] = []

    def request(self, answer: Answer | None = None) -> None:
        """Ask the trainer to save at its next safe point, and call ``answer`` with the outcome."""
        if answer is not None:
            self._waiting.append(answer)
        attempt = self._facts.running_attempt
        if not self._is_possible:
            structlog.get_logger().warning(NO_SAVING_ON_DEMAND)
            self.answer_all({"type": "failed", "problem": NO_SAVING_ON_DEMAND})
        elif attempt is None:
            self.answer_all({"type": "failed", "problem": NO_TRAINER})
        else:
            attempt.main.page.values[Field.CHECKPOINT_REQUESTS] += 1

    async def save_now(self) -> Message:
        """Ask the trainer to save, and return the outcome: ``published`` or ``failed``."""
        outcome: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answer(message: Message) -> None:
            if not outcome.done():
                outcome.set_result(message)

        self.request(answer)
        return await outcome

    def answer_all(self, message: Message) -> None:
        """Answer every request that is waiting."""
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer(message)
