"""A progress bar over a batch of requests, where tqdm is installed. Knows counts only."""

from collections.abc import Callable
from typing import Any

from quire.outputs import RequestOutput


class Progress:
    """Counts requests as they finish and shows the speed of the tokens that they took and brought."""

    def __init__(self, num_requests: int, use_tqdm: bool | Callable[..., Any], description: str) -> None:
        make = _tqdm() if use_tqdm is True else use_tqdm or None
        self._bar = (
            make(total=num_requests, desc=description, dynamic_ncols=True) if make is not None else None
        )
        self._num_input_tokens = 0
        self._num_output_tokens = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, output: RequestOutput) -> None:
        """One more is finished."""
        if self._bar is None:
            return
        self._num_input_tokens += len(output.prompt_token_ids or ())
        self._num_output_tokens += sum(len(each.token_ids) for each in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.set_postfix_str(
            f"input {self._num_input_tokens / elapsed_s:.0f} tok/s, "
            f"output {self._num_output_tokens / elapsed_s:.0f} tok/s",
            refresh=False,
        )
        self._bar.update(1)


def _tqdm() -> Callable[..., Any] | None:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
