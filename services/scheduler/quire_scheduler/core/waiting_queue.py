"""Sequences that wait for a slot, best first.

A heap whose dead entries (aborted or ended while waiting) are dropped when they surface. Bounded by the core's limit
on live requests, not here.
"""

from heapq import heappop, heappush

from quire_scheduler.core.request import Sequence, Status


class WaitingQueue:
    """Waiting sequences in policy order."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], Sequence]] = []
        self._num_waiting = 0
        self._num_prompt_tokens = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of everything that waits, cached or not."""
        return self._num_prompt_tokens

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence whose status is WAITING."""
        assert sequence.status is Status.WAITING, f"{sequence} does not wait"
        heappush(self._heap, (sequence.order, sequence))
        self._num_waiting += 1
        self._num_prompt_tokens += sequence.num_prompt

    def peek(self) -> Sequence | None:
        """The best waiting sequence."""
        while self._heap:
            sequence = self._heap[0][1]
            if sequence.status is Status.WAITING:
                return sequence
            heappop(self._heap)
        return None

    def pop(self) -> Sequence:
        """Takes the best waiting sequence; its caller changes its status."""
        sequence = self.peek()
        assert sequence is not None, "pop from an empty queue"
        heappop(self._heap)
        self._discount(sequence)
        return sequence

    def forget(self, sequence: Sequence) -> None:
        """Discounts a waiting sequence that its caller is about to end."""
        assert sequence.status is Status.WAITING, f"{sequence} does not wait"
        self._discount(sequence)

    def _discount(self, sequence: Sequence) -> None:
        self._num_waiting -= 1
        self._num_prompt_tokens -= sequence.num_prompt
