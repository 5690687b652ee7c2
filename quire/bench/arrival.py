"""When requests arrive. Knows no request."""

import random


def arrival_times_s(num_requests: int, request_rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start at which each request is sent.

    Gaps are gamma-distributed with mean 1/`request_rate` and shape `burstiness`: 1 is a Poisson process, less comes in
    bursts, more is steadier. At an infinite rate all come at once.
    """
    if request_rate == float("inf"):
        return [0.0] * num_requests
    draw = random.Random(seed)
    time_s = 0.0
    times_s: list[float] = []
    for _ in range(num_requests):
        times_s.append(time_s)
        time_s += draw.gammavariate(burstiness, 1 / (request_rate * burstiness))
    return times_s
