"""LLM: a batch of prompts in, their outputs in order, for programs without an event loop.

Knows no process and no message: a stack is started or attached to by `EngineHandle`.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Self, cast

from quire.background import background_loop
from quire.beam_search_params import BeamSearchParams
from quire.engine_args import EngineArgs
from quire.engine_handle import EngineHandle, default_sampling_params
from quire.errors import InvalidRequest, QuireError
from quire.inputs import Message, PromptType, chat_prompt, conversations_of, prompts_of
from quire.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, RequestOutput
from quire.progress import Progress
from quire.request_state import new_request
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer_client import AsyncTokenizer, Tokenizer
from quire.v1 import tokenizer_pb2


@dataclass(frozen=True, slots=True)
class _Job:
    """One prompt of a batch, before it is sent."""

    number: int
    prompt: PromptType | tokenizer_pb2.ChatPrompt
    params: SamplingParams | BeamSearchParams
    priority: int


class LLM:
    """An engine for batches. Its arguments are those of `EngineArgs`.

        with LLM(model="/path/to/model") as llm:
            for output in llm.generate(["ROMEO:", "JULIET:"], SamplingParams(max_tokens=50)):
                print(output.outputs[0].text)

    With `address="host:50051"` it attaches to a stack that runs already. A stack of its own ends with `shutdown`, with
    the `with` block, or with the process. Failures are those of `quire.errors`, naming the field.
    """

    def __init__(self, model: str | None = None, **engine_args: Any) -> None:
        self.engine_args = EngineArgs(model, **engine_args)
        self._engine = EngineHandle(self.engine_args)
        self._client = self._engine.client
        self._loop = background_loop()
        self._name = secrets.token_hex(4)
        self._counter = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.shutdown()

    @property
    def address(self) -> str:
        """Where the stack's gRPC services are."""
        return self._engine.address

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler of a stack of its own answers GetStats; empty for one that was attached to."""
        return self._engine.scheduler_address

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continues every prompt; the outputs have the order of the prompts.

        `sampling_params` are one for all or one for each; None takes the model's defaults. However many prompts there
        are, a window of them is under way. Raises the first `QuireError`, with a note that names the prompt, and gives
        up the rest.
        """
        listed = prompts_of(prompts)
        return self._run(listed, _one_for_each(sampling_params, len(listed)), priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, rendered with the model's chat template; otherwise as `generate`.

        Messages and `tools` are those of OpenAI's API.
        """
        chats = [
            chat_prompt(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
                tools=tools,
            )
            for conversation in conversations_of(messages)
        ]
        return self._run(chats, _one_for_each(sampling_params, len(chats)), None, use_tqdm)

    def beam_search(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: BeamSearchParams,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
    ) -> list[BeamSearchOutput]:
        """The best `params.beam_width` continuations of every prompt, searched for inside the engine."""
        listed = prompts_of(prompts)
        outputs = self._run(listed, [params] * len(listed), None, use_tqdm)
        return self._loop.call(self._with_text(outputs))

    def get_tokenizer(self) -> Tokenizer:
        """The served model's tokenizer."""
        return Tokenizer(AsyncTokenizer(self._client), self._loop)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses where it is given none: None stands for the served model's own value."""
        return default_sampling_params()

    def shutdown(self) -> None:
        """Ends all calls and a stack of its own. A second call does nothing."""
        self._loop.call(self._client.close())
        self._engine.stop()

    def _run(
        self,
        prompts: Sequence[PromptType | tokenizer_pb2.ChatPrompt],
        params: Sequence[SamplingParams | BeamSearchParams],
        priority: Sequence[int] | None,
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        for field, values in (("sampling_params", params), ("priority", priority)):
            if values is not None and len(values) != len(prompts):
                raise InvalidRequest(
                    f"{field} has {len(values)} entries for {len(prompts)} prompts", field=field
                )
        jobs = [
            _Job(number, prompt, params[number], priority[number] if priority is not None else 0)
            for number, prompt in enumerate(prompts)
        ]
        with Progress(len(jobs), use_tqdm, "Processed prompts") as progress:
            return self._loop.call(self._run_window(jobs, progress))

    async def _run_window(self, jobs: Sequence[_Job], progress: Progress) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(jobs)
        waiting = iter(jobs)
        lanes = [
            asyncio.create_task(self._run_lane(waiting, outputs, progress))
            for _ in range(min(self._engine.window, len(jobs)))
        ]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        return cast("list[RequestOutput]", outputs)

    async def _run_lane(
        self, waiting: Iterator[_Job], outputs: list[RequestOutput | None], progress: Progress
    ) -> None:
        """One place of the window: takes the next prompt when its last one is finished."""
        for job in waiting:
            try:
                outputs[job.number] = output = await self._finish(job)
            except QuireError as error:
                error.add_note(f"in prompt {job.number} of the batch, counted from 0")
                raise
            progress.add(output)

    async def _finish(self, job: _Job) -> RequestOutput:
        prompt, text = job.prompt, None
        if isinstance(prompt, tokenizer_pb2.ChatPrompt):
            text, prompt = await self._client.render(prompt)
        request, state = new_request(
            f"{self._name}-{next(self._counter)}",
            prompt,
            job.params,
            model=self._client.model,
            priority=job.priority,
            prompt_text=text,
        )
        call = self._client.generate(request)
        output: RequestOutput | None = None
        while (response := await call.read()) is not None:
            output = state.add(response)
        assert output is not None, "a call that ends well ends with a finished output"
        return output

    async def _with_text(self, outputs: Sequence[RequestOutput]) -> list[BeamSearchOutput]:
        """Beams as vLLM has them: each with its prompt."""
        found: list[BeamSearchOutput] = []
        for output in outputs:
            beams = [_beam(output, each) for each in output.outputs]
            texts = await asyncio.gather(*(self._client.detokenize(beam.tokens) for beam in beams))
            found.append(
                BeamSearchOutput([replace(beam, text=text) for beam, text in zip(beams, texts, strict=True)])
            )
        return found


def _beam(output: RequestOutput, each: CompletionOutput) -> BeamSearchSequence:
    assert each.score is not None, "a beam has a score"
    assert each.cumulative_logprob is not None, "and what it was made from"
    tokens = [*(output.prompt_token_ids or ()), *each.token_ids]
    return BeamSearchSequence(
        tokens, each.cumulative_logprob, each.score, each.text, each.finish_reason, each.stop_reason
    )


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    """Parameters of each prompt, whose one message comes at its end."""
    if isinstance(params, Sequence):
        return [replace(each, output_kind=RequestOutputKind.FINAL_ONLY) for each in params]
    one = replace(params or default_sampling_params(), output_kind=RequestOutputKind.FINAL_ONLY)
    return [one] * num_prompts
