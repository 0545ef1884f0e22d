"""Answers to other nodes that take their time: handlers are plain functions and don't wait."""

import asyncio
from collections.abc import Awaitable

from perdure.cluster.core.messages import Message
from perdure.cluster.transport import Answer
from perdure.core.errors import AnswerLost, PerdureError
from perdure.core.telemetry import logger

log = logger("fabric")


class LateAnswers:
    """Holds what is being worked out until it is answered."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[Message], answer: Answer) -> None:
        """Answer with what ``work`` comes to; an error that it raises is the answer, too."""
        task = asyncio.ensure_future(_answer(work, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Answer nothing more."""
        for task in self._tasks:
            task.cancel()


async def _answer(work: Awaitable[Message], answer: Answer) -> None:
    try:
        result = await work
    except PerdureError as error:
        answer(error)
    except Exception as failure:  # bulkhead: a bug costs its question
        log.error("fabric.answer.failed", cause=failure)
        answer(AnswerLost("a bug met the question: see the log of the node asked"))
    else:
        answer(result)
