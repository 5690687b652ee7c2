"""When the next plan of a group is due: before the device runs dry, but no earlier than that asks for.

A plan that is cut as soon as the pipeline has room waits on the device behind a whole step, and whoever arrives meanwhile
waits for the step after it. So while a step runs that is known to take long, the plan behind it is cut late, and
takes along who has come by then. Knows moments and sizes of steps, no clock of its own and no request.
"""

from collections import deque

_REMEMBERED_STEPS = 8
_MOST_ROWS = 48
"""With more rows no plan is put off: throughput counts for more there, and the host has so much to do between two steps
that on two busy cores 64 streams lost a quarter of theirs."""
_LEAD_S = 3e-3
"""How long before the step in flight ends the next plan is cut: it has to be cut, sent, prepared and launched by then, and
timers of the event loop are up to a millisecond late."""
_LEAST_SLACK_S = 1.5e-3
"""A plan that left later than this before the step in flight ended came too late: the lead grows."""
_LEAD_GROWTH_S = 1e-3
_LONGEST_LEAD_S = 0.05
_LEAD_DECAY = 0.998
"""A step: a busy moment of the machine is forgotten after a thousand steps, a busy machine is not."""
_LEAD_PER_WAITING_TOKEN_S = 1e-6
"""Prompts that wait have their blocks named, granted and sent with the plan: half a microsecond a token was seen."""
_LEAD_SHARE = 0.05
"""Of the step's time: steps of as many tokens differ by their contexts."""


class PlanTiming:
    """The steps in flight of one group, and how long recent ones took."""

    def __init__(self) -> None:
        self._in_flight: deque[tuple[int, bool, float]] = deque()
        """Tokens of each step, whether it was sent while another was in flight, and when."""
        self._durations: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED_STEPS)
        """Tokens and seconds of steps that began when the one before them ended."""
        self._begun_at = 0.0
        self._lead_s = _LEAD_S

    def sent(self, num_tokens: int, now: float) -> None:
        """A plan of so many tokens left."""
        if not self._in_flight:
            self._begun_at = now
        self._in_flight.append((num_tokens, bool(self._in_flight), now))

    def answered(self, now: float) -> None:
        """The oldest step in flight came back."""
        if not self._in_flight:
            return
        num_tokens, began_at_once, _ = self._in_flight.popleft()
        elapsed = now - self._begun_at
        if began_at_once:
            self._durations.append((num_tokens, elapsed))
        else:
            self._disprove(num_tokens, elapsed)
        self._begun_at = now
        if self._in_flight:
            self._weigh(now - self._in_flight[0][2])

    def came_late(self) -> None:
        """A step ended before the plan that was put off behind it was cut."""
        self._lead_s = min(self._lead_s + _LEAD_GROWTH_S, _LONGEST_LEAD_S)

    def _weigh(self, slack: float) -> None:
        """The next step was sent `slack` before the device could begin it."""
        if slack < _LEAST_SLACK_S:
            self.came_late()
        else:
            self._lead_s = max(_LEAD_S, self._lead_s * _LEAD_DECAY)

    def _disprove(self, num_tokens: int, elapsed: float) -> None:
        """A lone step took `elapsed` at most: what was longer with no more tokens is not so any more.

        Else a plan that came too late would be followed by none but lone steps, which teach nothing.
        """
        left = [each for each in self._durations if each[0] > num_tokens or each[1] <= elapsed]
        self._durations = deque(left, maxlen=_REMEMBERED_STEPS)

    def forget(self) -> None:
        """Nothing is in flight any more: the group starts over."""
        self._in_flight.clear()

    def due_at(self, num_rows: int, num_waiting_tokens: int) -> float:
        """The moment to cut the next plan, for about `num_rows` rows while prompts of `num_waiting_tokens` wait; in the
        past when it is due at once.

        Only a lone step in flight is worth waiting for. It takes at least as long as the shortest that was seen lately
        among those of no more tokens; where there was none, nothing is known and nothing is put off.
        """
        if len(self._in_flight) != 1 or num_rows > _MOST_ROWS:
            return 0.0
        ((num_tokens, _, _),) = self._in_flight
        known = [seconds for tokens, seconds in self._durations if tokens <= num_tokens]
        if not known:
            return 0.0
        lead = self._lead_s + _LEAD_PER_WAITING_TOKEN_S * num_waiting_tokens
        return self._begun_at + (1 - _LEAD_SHARE) * min(known) - lead
