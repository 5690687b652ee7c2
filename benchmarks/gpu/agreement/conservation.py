"""Ten thousand random requests with random aborts: afterwards every KV block is free or cached, and held by nobody."""

import random
import time

from quire_scheduler.core import Sampling

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.served import load
from quire.assets import shipped_model_path
from tests.doubles.in_process_engine import GROUP, OWNER, InProcessEngine

_NUM_REQUESTS = 10_000
_MAX_LIVE = 96
_NUM_BLOCKS = 128
"""So few that sequences are preempted."""


def check_conservation(num_requests: int = _NUM_REQUESTS) -> list[Outcome]:
    """The shipped model, with little memory."""
    loaded = load(
        shipped_model_path(), max_num_seqs=64, max_num_batched_tokens=512, max_model_len=256,
        num_gpu_blocks_override=_NUM_BLOCKS, kv_cache_memory_bytes=None,
    )  # fmt: skip
    engine = InProcessEngine.of(loaded)
    start = time.perf_counter()
    num_aborts = _churn(engine, loaded.spec.vocab_size, num_requests)
    stats = engine.core.stats()
    pool = engine.core._groups[GROUP].kv.pool
    num_held = sum(pool.num_holders(block) > 0 for block in range(1, pool.num_blocks + 1))
    return [
        Outcome(
            check=f"conservation of blocks over {num_requests} requests",
            passed=stats.num_requests == 0
            and num_held == 0
            and stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
            and num_aborts > 0
            and stats.num_preemptions > 0,
            detail=f"{num_aborts} aborts, {stats.num_preemptions} preemptions, {stats.num_prefix_hit_tokens} cached tokens, "
            f"{stats.num_free_blocks} free + {stats.num_cached_blocks} cached of {stats.num_total_blocks} blocks, "
            f"{num_held} held, {stats.num_steps} steps in {time.perf_counter() - start:.0f} s",
        )
    ]


def _churn(engine: InProcessEngine, vocab_size: int, num_requests: int) -> int:
    """Runs the requests; returns how many were aborted while they lived."""
    draw = random.Random(11)
    shared = draw.choices(range(vocab_size), k=64)
    live: list[int] = []
    num_added = num_aborts = 0
    while True:
        while num_added < num_requests and engine.num_live < _MAX_LIVE:
            live.append(_add(engine, draw, shared, vocab_size))
            num_added += 1
        if len(live) > 2 * _MAX_LIVE:
            live = [handle for handle in live if engine.core.is_live(OWNER, handle)]
        while live and draw.random() < 0.4:
            num_aborts += engine.core.abort(OWNER, live.pop(draw.randrange(len(live))))
        if not engine.step():
            break
    assert num_added == num_requests, f"only {num_added} requests entered"
    return num_aborts


def _add(engine: InProcessEngine, draw: random.Random, shared: list[int], vocab_size: int) -> int:
    prompt = draw.choices(range(vocab_size), k=draw.randint(1, 60))
    if draw.random() < 0.4:
        prompt = shared[: draw.randint(1, 64)] + prompt
    sampling = Sampling(
        max_tokens=draw.randint(1, 40),
        n=draw.choice((1, 1, 1, 1, 3)),
        temperature=draw.choice((0.0, 0.8)),
        seed=draw.randrange(2**40),
    )
    return engine.add(prompt, sampling)
