"""How far a long task of the start is, as lines in the log. Knows no task."""

import logging
from itertools import count
from time import perf_counter

logger = logging.getLogger(__name__)

_EVERY = 16


class Progress:
    """Counts what is done of one task; threads may share it."""

    def __init__(self, task: str, num_wanted: int) -> None:
        self._task = task
        self._num_wanted = num_wanted
        self._numbers = count(1)
        self._started = perf_counter()

    def note_done(self) -> None:
        """One more is done."""
        number = next(self._numbers)
        if number % _EVERY == 0 or number == self._num_wanted:
            seconds = round(perf_counter() - self._started, 1)
            logger.info(self._task, extra={"done": number, "of": self._num_wanted, "seconds": seconds})
