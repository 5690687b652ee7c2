"""A worker process that says what it is told: `python -m tests.doubles.scripted_worker --scheduler HOST:PORT --model DIR`.

A prompt that holds `[[say TEXT]]`, with TEXT in hexadecimal as `say` writes it, is answered with that text and an
end-of-sequence token; the last such mark counts, and each sequence of a request says the same. So a test decides what the
model writes, and tokenizer, scheduler, wire and HTTP are the real ones. Grammars are not obeyed: the script is the model's will.
"""

import argparse
import asyncio
import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from quire.wire.plan import SlotAdmission
from tests.doubles.echo_worker import BLOCK_SIZE, EchoWorker
from tests.doubles.simulated_worker import SimulatedWorker, Slot

MAX_MODEL_LEN = 8192

_MARK = re.compile(r"\[\[say ([0-9a-f]*)\]\]")


def say(text: str) -> str:
    """The mark in a prompt that makes the model write `text`."""
    return f"[[say {text.encode().hex()}]]"


class ScriptedWorker(EchoWorker):
    """Registers as any worker does; its tokens are those of the script."""

    def __init__(self, scheduler: str, model: Path, *, steps_per_s: float = 0.0) -> None:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        eos_token_ids = _eos_token_ids(model)
        vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        num_blocks, max_num_seqs = 8192, 64
        super().__init__(
            scheduler,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            steps_per_s=steps_per_s,
            model=str(model),
            max_model_len=MAX_MODEL_LEN,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
        )
        self._worker = _ScriptedSlots(
            tokenizer,
            eos_token_ids[0],
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            vocab_size=vocab_size,
        )


class _ScriptedSlots(SimulatedWorker):
    """Executes plans as the simulated worker does, except for what is drawn."""

    def __init__(
        self, tokenizer: Tokenizer, end: int, *, num_blocks: int, max_num_seqs: int, vocab_size: int
    ) -> None:
        super().__init__(
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_num_seqs=max_num_seqs, vocab_size=vocab_size
        )
        self._tokenizer = tokenizer
        self._end = end
        self._scripts: dict[int, list[int]] = {}
        """By the identity of the admission, which lives as long as its slot."""

    def _next_token(self, state: Slot, masked: frozenset[int]) -> int:
        admission = state.admission
        if len(state.known) == admission.prompt_len or id(admission) not in self._scripts:
            self._scripts[id(admission)] = self._script(admission)
        script = self._scripts[id(admission)]
        return script[min(len(state.known) - admission.prompt_len, len(script) - 1)]

    def _script(self, admission: SlotAdmission) -> list[int]:
        prompt = self._tokenizer.decode(
            admission.token_ids[: admission.prompt_len], skip_special_tokens=False
        )
        marks = _MARK.findall(prompt)
        text = bytes.fromhex(marks[-1]).decode() if marks else ""
        return [*self._tokenizer.encode(text, add_special_tokens=False).ids, self._end]


def _eos_token_ids(model: Path) -> list[int]:
    config = json.loads((model / "generation_config.json").read_text())
    ids = config["eos_token_id"]
    return ids if isinstance(ids, list) else [ids]


async def _run(scheduler: str, model: Path) -> None:
    running = asyncio.create_task(ScriptedWorker(scheduler, model).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    print("READY {}", flush=True)
    try:
        await running
    except asyncio.CancelledError:
        return


def main(argv: Sequence[str] | None = None) -> None:
    """Parses flags and works until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler", required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args(argv)
    asyncio.run(_run(options.scheduler, options.model))


if __name__ == "__main__":
    main()
