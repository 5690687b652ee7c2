"""Two stacks for the clients of other people: the shipped model, and one that says what it is told, so that it calls tools."""

from collections.abc import Iterator

import pytest

from tests.doubles.scripted_stack import scripted_stack
from tests.ship.served import running_stack


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """The HTTP API of `quire serve`."""
    with running_stack("--max-num-seqs", "16") as served:
        yield served.url


@pytest.fixture(scope="session")
def scripted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The HTTP API of a front door that reads tool calls."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    with scripted_stack(tmp_path_factory.mktemp("model")) as stack:
        with stack.front_door("--served-model-name", "scripted", *flags) as url:
            yield url
