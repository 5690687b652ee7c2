"""The columns of a plan that hold its admissions, written and read.

One row of integers and one of floats an admission; what differs in length (tokens, stops, biases, words, grammars) lies end to
end in columns of its own, and the rows say how much of them is whose.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from quire.wire.column import ColumnReader, ColumnWriter, FrameError
from quire.wire.plan import SlotAdmission

_ADMISSION_INTS = 15
_ADMISSION_FLOATS = 6

Entry = TypeVar("Entry")


def add_admissions(writer: ColumnWriter, admissions: Sequence[SlotAdmission]) -> None:
    ints: list[int] = []
    floats: list[float] = []
    token_ids = array("I")
    stop_token_ids: list[int] = []
    for a in admissions:
        ints += (a.slot, len(a.token_ids), a.num_computed_tokens, a.prompt_len, a.sequence_index)
        ints += (a.top_k, a.num_logprobs, a.min_len, a.max_len, len(a.stop_token_ids), 0)
        ints += (len(a.logit_bias), len(a.allowed_token_ids), len(a.bad_words), a.num_prompt_logprobs)
        floats += (a.temperature, a.top_p, a.min_p)
        floats += (a.presence_penalty, a.frequency_penalty, a.repetition_penalty)
        token_ids.extend(a.token_ids)
        stop_token_ids += a.stop_token_ids
    writer.add("admission_ints", "i", ints, _ADMISSION_INTS)
    writer.add("admission_floats", "f", floats, _ADMISSION_FLOATS)
    writer.add("admission_seeds", "q", [a.seed for a in admissions])
    writer.add_packed("admission_token_ids", token_ids)
    writer.add("admission_stop_token_ids", "i", stop_token_ids)
    _add_biases(writer, admissions)
    constrained = [(number, a.grammar) for number, a in enumerate(admissions) if a.grammar]
    writer.add("grammars", "i", [x for number, text in constrained for x in (number, len(text))], 2)
    writer.add("grammar_bytes", "B", b"".join(text for _number, text in constrained))
    if any(a.num_candidates for a in admissions):
        writer.add("admission_num_candidates", "i", [a.num_candidates for a in admissions])


def _add_biases(writer: ColumnWriter, admissions: Sequence[SlotAdmission]) -> None:
    pairs = [pair for a in admissions for pair in a.logit_bias]
    words = [word for a in admissions for word in a.bad_words]
    writer.add("admission_bias_token_ids", "i", [token for token, _bias in pairs])
    writer.add("admission_biases", "f", [bias for _token, bias in pairs])
    writer.add(
        "admission_allowed_token_ids", "i", [token for a in admissions for token in a.allowed_token_ids]
    )
    writer.add("admission_bad_word_lens", "i", [len(word) for word in words])
    writer.add("admission_bad_word_token_ids", "i", [token for word in words for token in word])


def take_admissions(reader: ColumnReader) -> list[SlotAdmission]:
    ints = reader.take("admission_ints", "i", _ADMISSION_INTS)
    floats = reader.take_floats("admission_floats", _ADMISSION_FLOATS)
    seeds = reader.take("admission_seeds", "q")
    token_ids = reader.take_packed("admission_token_ids", "I")
    stop_token_ids = reader.take("admission_stop_token_ids", "i")
    num_admissions = len(seeds)
    grammars = _take_grammars(reader, num_admissions)
    num_candidates = reader.take("admission_num_candidates", "i") or [0] * num_admissions
    if len(num_candidates) != num_admissions:
        raise FrameError("admission columns differ in length")
    if len(ints) != num_admissions * _ADMISSION_INTS or len(floats) != num_admissions * _ADMISSION_FLOATS:
        raise FrameError("admission columns differ in length")
    admissions: list[SlotAdmission] = []
    biases = _BiasReader(reader)
    token_at = stop_at = 0
    for i in range(num_admissions):
        (
            slot,
            num_tokens,
            num_computed,
            prompt_len,
            index,
            top_k,
            num_logprobs,
            min_len,
            max_len,
            num_stop,
            _adapter,
            num_biases,
            num_allowed,
            num_words,
            num_prompt_logprobs,
        ) = ints[i * _ADMISSION_INTS : (i + 1) * _ADMISSION_INTS]
        if num_tokens < 0 or num_stop < 0:
            raise FrameError(f"an admission of {num_tokens} tokens and {num_stop} stop tokens")
        temperature, top_p, min_p, presence, frequency, repetition = floats[
            i * _ADMISSION_FLOATS : (i + 1) * _ADMISSION_FLOATS
        ]
        admissions.append(
            SlotAdmission(
                slot=slot,
                token_ids=token_ids[token_at : token_at + num_tokens],
                num_computed_tokens=num_computed,
                prompt_len=prompt_len,
                sequence_index=index,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seeds[i],
                num_logprobs=num_logprobs,
                min_len=min_len,
                max_len=max_len,
                stop_token_ids=tuple(stop_token_ids[stop_at : stop_at + num_stop]),
                presence_penalty=presence,
                frequency_penalty=frequency,
                repetition_penalty=repetition,
                grammar=grammars.get(i, b""),
                num_candidates=num_candidates[i],
                logit_bias=biases.take_pairs(num_biases),
                allowed_token_ids=biases.take_allowed(num_allowed),
                bad_words=biases.take_words(num_words),
                num_prompt_logprobs=num_prompt_logprobs,
            )
        )
        token_at += num_tokens
        stop_at += num_stop
    if token_at != len(token_ids) or stop_at != len(stop_token_ids) or not biases.is_read:
        raise FrameError("admission token columns do not add up")
    return admissions


def _take_grammars(reader: ColumnReader, num_admissions: int) -> dict[int, bytes]:
    """Constraints by the number of their admission."""
    pairs, joined = reader.take("grammars", "i", 2), reader.take_bytes("grammar_bytes")
    grammars: dict[int, bytes] = {}
    at = 0
    for number, num_bytes in zip(pairs[::2], pairs[1::2], strict=True):
        if not 0 <= number < num_admissions or num_bytes < 0:
            raise FrameError(f"a grammar of {num_bytes} bytes for admission {number} of {num_admissions}")
        grammars[number] = joined[at : at + num_bytes]
        at += num_bytes
    if at != len(joined):
        raise FrameError("grammars do not add up to grammar_bytes")
    return grammars


class _BiasReader:
    """Hands the columns of biases, allowed tokens and bad words to one admission after another."""

    def __init__(self, reader: ColumnReader) -> None:
        token_ids = reader.take("admission_bias_token_ids", "i")
        biases = reader.take_floats("admission_biases")
        word_lens = reader.take("admission_bad_word_lens", "i")
        word_tokens = reader.take("admission_bad_word_token_ids", "i")
        if len(token_ids) != len(biases):
            raise FrameError("admission_biases and admission_bias_token_ids differ in length")
        if min(word_lens, default=1) < 1 or sum(word_lens) != len(word_tokens):
            raise FrameError("admission_bad_word_lens does not add up to admission_bad_word_token_ids")
        self._pairs = deque(zip(token_ids, biases, strict=True))
        self._allowed = deque(reader.take("admission_allowed_token_ids", "i"))
        self._word_lens = deque(word_lens)
        self._word_tokens = deque(word_tokens)

    @property
    def is_read(self) -> bool:
        """Whether nothing is left."""
        return not (self._pairs or self._allowed or self._word_lens)

    def take_pairs(self, count: int) -> tuple[tuple[int, float], ...]:
        return _taken(self._pairs, count)

    def take_allowed(self, count: int) -> tuple[int, ...]:
        return _taken(self._allowed, count)

    def take_words(self, count: int) -> tuple[tuple[int, ...], ...]:
        return tuple(_taken(self._word_tokens, length) for length in _taken(self._word_lens, count))


def _taken(column: deque[Entry], count: int) -> tuple[Entry, ...]:
    """The next entries of a column. Raises `FrameError` when it has fewer."""
    if not 0 <= count <= len(column):
        raise FrameError(f"admission columns hold {len(column)} entries where {count} are due")
    return tuple(column.popleft() for _ in range(count))
