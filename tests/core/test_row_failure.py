"""A row that cannot go on ends its own request, and nothing else."""

import pytest
from quire_scheduler.core import CoreLimits, FinishReason

from quire.wire.result import RowFailure, StepResult
from tests.core.driver import CoreDriver, capacity_of
from tests.doubles.simulated_worker import expected_tokens


def without_token(result: StepResult, row: int, message: str) -> StepResult:
    """The result of a worker on which the row failed."""
    if result.num_tokens[row]:
        del result.token_ids[sum(result.num_tokens[:row])]
        result.num_tokens[row] = 0
    result.failures.append(RowFailure(row, message, "structured_outputs"))
    return result


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("num_steps_before", [0, 1, 4])
def test_a_failed_row_ends_all_sequences_of_its_request_alone(depth: int, num_steps_before: int) -> None:
    driver = CoreDriver(capacity_of(), CoreLimits(pipeline_depth=depth))
    driver.add("good", [1, 2, 3], 12)
    driver.add("bad", [4, 5, 6], 12, n=2)
    driver.add("other", [7, 8, 9], 12)
    for _ in range(num_steps_before):
        driver.step()
    while driver.plan() is not None:
        pass
    plan = driver.sent.popleft()
    result = without_token(driver.worker.execute(plan), 1, "no grammar")
    driver.core.apply(result)
    driver.collect()
    assert driver.failed == {"bad": "no grammar"}
    driver.run()
    assert driver.failed == {"bad": "no grammar"}
    assert set(driver.finished) == {("good", 0), ("other", 0)}
    for name, prompt in (("good", [1, 2, 3]), ("other", [7, 8, 9])):
        assert driver.finished[name, 0] is FinishReason.LENGTH
        assert driver.tokens[name, 0] == expected_tokens(
            prompt, seed=0, index=0, max_tokens=12, stops=frozenset(), vocab_size=1000
        )
    assert driver.core.stats().num_used_blocks == 0
    assert driver.core.stats().num_requests == 0
