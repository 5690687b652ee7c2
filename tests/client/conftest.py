"""One stack for the tests of this folder, started by the `LLM` that some of them use and the others attach beside."""

from collections.abc import Iterator

import pytest

from quire import LLM


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=64, max_model_len=512) as started:
        yield started
