"""What only a GPU can do is not collected where there is none, instead of being skipped."""

import pytest
import torch

ON_GPU = torch.cuda.is_available()


@pytest.fixture
def seeded() -> None:
    """Makes a test's random tensors the same each time."""
    torch.manual_seed(20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests of a GPU where there is none."""
    if ON_GPU:
        return
    unfit = [item for item in items if item.get_closest_marker("gpu")]
    if unfit:
        config.hook.pytest_deselected(items=unfit)
        items[:] = [item for item in items if item not in unfit]
