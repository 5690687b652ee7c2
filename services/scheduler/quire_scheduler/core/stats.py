"""Counters of the core since its start, and its state as figures."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counted since start."""

    num_steps: int = 0
    num_overlapped_steps: int = 0
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0
    num_prefix_query_tokens: int = 0
    num_generated_tokens: int = 0
    num_prefill_tokens: int = 0
    num_group_resets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreStats:
    """One moment, summed over worker groups; the fields are those of quire.v1.GetStatsResponse."""

    num_running: int
    num_running_beams: int
    num_waiting: int
    num_requests: int
    num_total_blocks: int
    num_free_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_steps: int
    num_overlapped_steps: int
    num_preemptions: int
    num_prefix_hit_tokens: int
    num_prefix_query_tokens: int
    num_generated_tokens: int
    num_prefill_tokens: int
    num_group_resets: int
    num_worker_groups: int
    kv_waste_ratio: float
    block_size: int
