"""The share of allocated KV slots that hold no token, as `GetStats` tells it, beside a count by hand."""

import pytest
from quire_scheduler.core import CoreLimits

from tests.core.driver import CoreDriver, capacity_of


def _driver(**limits: bool) -> CoreDriver:
    return CoreDriver(capacity_of(block_size=16), CoreLimits(pipeline_depth=1, **limits))


def _prompt(length: int, first: int = 0) -> list[int]:
    return [first + at for at in range(length)]


def test_no_request_wastes_nothing() -> None:
    driver = _driver()
    assert driver.core.stats().kv_waste_ratio == 0
    driver.add("short", _prompt(5), 2)
    driver.run()
    assert driver.core.stats().kv_waste_ratio == 0


def test_tail_of_the_last_block_is_waste_until_it_is_full() -> None:
    driver = _driver(enable_prefix_caching=False)
    driver.add("only", _prompt(20), 30)
    for num_tokens in range(20, 49):
        driver.step()
        num_slots = -(-num_tokens // 16) * 16
        assert driver.core.stats().kv_waste_ratio == pytest.approx((num_slots - num_tokens) / num_slots)


def test_tails_of_several_requests_add_up() -> None:
    driver = _driver(enable_prefix_caching=False)
    for name, length in (("a", 1), ("b", 16), ("c", 40)):
        driver.add(name, _prompt(length, first=100 * length % 900), 8)
    driver.step()
    assert driver.core.stats().kv_waste_ratio == pytest.approx((15 + 0 + 8) / (16 + 16 + 48))


def test_shared_tail_counts_once() -> None:
    driver = _driver()
    driver.add("pair", _prompt(20), 8, n=2)
    driver.step()
    assert driver.core.stats().kv_waste_ratio == pytest.approx(12 / 32)
