"""In which order sequences are served. A policy is a key: smaller is served first and preempted last."""

from typing import Protocol

from quire_scheduler.core.request import Sequence


class Policy(Protocol):
    """Gives every sequence its place; the key must not change while the sequence lives."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """The sequence's key, unique among sequences."""
        ...


class FirstComeFirstServed:
    """By arrival; sequences of one request by index."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """(arrival, index)."""
        return (sequence.request.arrival, sequence.index)


class PriorityFirst:
    """By the request's priority, smaller first, then by arrival."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """(priority, arrival, index)."""
        return (sequence.request.priority, sequence.request.arrival, sequence.index)


POLICIES: dict[str, type[Policy]] = {"fcfs": FirstComeFirstServed, "priority": PriorityFirst}
"""Policies by the name that `--scheduling-policy` takes."""
