"""The rules of beam search where a comparison with transformers does not reach: extreme penalties, wide searches."""

import math
from collections.abc import Iterator

import pytest
from quire_scheduler.core import BeamParams
from quire_scheduler.core.beam_search import BeamSearch, EarlyStopping

_EOS = 0


def _search(penalty: float, early_stopping: EarlyStopping = False) -> BeamSearch:
    params = BeamParams(beam_width=2, length_penalty=penalty, early_stopping=early_stopping)
    return BeamSearch(params, frozenset({_EOS}))


@pytest.mark.parametrize(("penalty", "score"), [(1e30, 0.0), (-1e30, -math.inf), (0.0, -2.0), (-1.0, -4.0)])
def test_score_is_a_number_for_every_penalty(penalty: float, score: float) -> None:
    search = _search(penalty)
    search.choose([[]], [[(5, -0.5), (6, -1.0), (7, -3.0), (8, -4.0)]], 9)
    search.choose([[5], [6]], [[(_EOS, -1.5), (9, -2.0), (8, -3.0), (7, -3.5)]] * 2, 9)
    assert search.hypotheses[0].token_ids == [5, _EOS]
    assert search.hypotheses[0].score == pytest.approx(score)


def test_end_of_sequence_behind_the_first_beams_does_not_count() -> None:
    search = _search(1.0)
    choices = search.choose([[]], [[(5, -0.5), (6, -1.0), (_EOS, -1.5), (8, -4.0)]], 9)
    assert [choice.token for choice in choices] == [5, 6]
    assert not search.hypotheses


def test_first_hypotheses_end_a_search_that_stops_early() -> None:
    rows = [[(_EOS, -0.1), (5, -0.2), (6, -0.3), (7, -0.4)]] * 2
    ways: tuple[EarlyStopping, ...] = (True, False, "never")
    lens: list[int] = []
    for early_stopping in ways:
        search = _search(3.0, early_stopping)
        outputs: list[list[int]] = [[]]
        while choices := search.choose(outputs, rows[: len(outputs)], 12):
            outputs = [[*outputs[parent], token] for parent, token in choices]
        lens.append(len(outputs[0]) + 1)
    assert lens[0] < lens[2], "never looks for longer ones, which this penalty favours"
    assert lens[0] <= lens[1] <= lens[2]


def test_wide_search_costs_what_it_keeps_not_what_it_is_brought() -> None:
    """The step loop waits for a choice: rows are read no further than the beams reach."""
    width = 256
    search = BeamSearch(BeamParams(beam_width=width), frozenset())
    num = search.num_candidates
    row = [(token, -token / 64) for token in range(num)]
    outputs: list[list[int]] = [[]]
    read = 0

    def counted(place: int) -> Iterator[tuple[int, float]]:
        nonlocal read
        for token, logprob in row:
            read += 1
            yield token, logprob - place / 1024

    choices = search.choose(outputs, [row], 9)
    assert (
        len(search.choose([[each.token] for each in choices], [counted(place) for place in range(width)], 9))
        == width
    )
    assert read <= width + num
