"""One sequence's text taken apart: what was thought, what is answered, and what is called. Knows no event and no JSON."""

from quire_tokenizer.output_delta import ReasoningDelta, TextDelta, ToolDelta
from quire_tokenizer.reasoning_parser import ReasoningParser
from quire_tokenizer.tool_parser import ToolParser

Piece = ReasoningDelta | TextDelta | ToolDelta


class OutputReader:
    """`feed` it the text as it comes, then `finish`."""

    def __init__(
        self, reasoning: ReasoningParser | None, tools: ToolParser | None, *, parallel_calls: bool = True
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._parallel_calls = parallel_calls
        self.has_calls = False
        """Whether any call was found so far."""

    def feed(self, text: str) -> list[Piece]:
        """What `text` brings to light."""
        pieces = self._reasoning.feed(text) if self._reasoning is not None else [TextDelta(text)]
        return [read for piece in pieces for read in self._read_calls(piece)]

    def finish(self) -> list[Piece]:
        """The text has ended: what was held back comes out."""
        rest = self._reasoning.finish() if self._reasoning is not None else []
        pieces = [read for piece in rest for read in self._read_calls(piece)]
        if self._tools is not None:
            pieces += self._admitted(self._tools.finish())
        return pieces

    def _read_calls(self, piece: ReasoningDelta | TextDelta) -> list[Piece]:
        if self._tools is None or isinstance(piece, ReasoningDelta):
            return [piece]
        return self._admitted(self._tools.feed(piece.text))

    def _admitted(self, pieces: "list[TextDelta | ToolDelta]") -> list[Piece]:
        """All pieces, but for calls after the first where only one is wanted."""
        admitted: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, ToolDelta):
                if piece.index and not self._parallel_calls:
                    continue
                self.has_calls = True
            admitted.append(piece)
        return admitted
