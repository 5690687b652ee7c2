"""What one client saw of one request. Knows no client and no server."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One stream, on the machine's monotonic clock."""

    sent_s: float
    times_s: list[float]
    """When each message with tokens came."""
    counts: list[int]
    """Tokens in each of them, as far as a server tells; 1 where it does not."""
    num_chars: int
    """Length of its text."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    """As the server counts them."""
    error: str = ""
    """Why it failed; empty for one that ended well."""

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.times_s[0] - self.sent_s

    @property
    def e2el_s(self) -> float:
        """From sending to the last token."""
        return self.times_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for a single one."""
        return (self.times_s[-1] - self.times_s[0]) / max(1, self.num_output_tokens - 1)

    @property
    def itls_s(self) -> list[float]:
        """Gaps between messages; tokens that share a message share its gap."""
        return [after - before for before, after in pairwise(self.times_s)]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
