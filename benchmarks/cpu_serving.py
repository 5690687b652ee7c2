"""CPU serving of concurrent prompts, beside `transformers.generate` of the same prompts as one left-padded batch.

    python benchmarks/cpu_serving.py [rounds]

A random Llama of 100 million parameters, float32, greedy, the same weights and threads on both sides, in turns. Prompts
have 16 to 256 tokens, outputs 32 to 128, and every output is forced to its length. Ours is the scheduler core and the
worker's served code path in one process; N concurrent prompts are handed in together, and one at a time is the mean
over the first four. The batch of `generate` runs to its longest output; only the tokens that were asked for count.
Of several rounds the fastest of each case counts, on both sides, since whatever else runs on the machine only adds time.
Last, the same 16 prompts are streamed from the three processes of a stack over gRPC, with other random weights.
"""

import asyncio
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / each) for each in (".", "services/scheduler", "services/worker", "kernels")]

from quire_scheduler.core import Sampling  # noqa: E402
from quire_worker.loading import LoadedModel, load_model  # noqa: E402

from benchmarks.gpu.model import Model  # noqa: E402
from benchmarks.gpu.stack import Stack  # noqa: E402
from quire.config import WorkerConfig  # noqa: E402
from quire.rpc.channel import open_channel  # noqa: E402
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2, tokenizer_pb2  # noqa: E402
from tests.doubles.in_process_engine import InProcessEngine  # noqa: E402

Job = tuple[list[int], int]
"""A prompt and how many tokens to generate."""

_LIST = generation_pb2.ListModelsRequest()
_SEED = 1
_NUM_ALONE = 4
_SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def main(num_rounds: int) -> None:
    """Measures in turns and prints the rates and their ratios."""
    jobs = _jobs(64)
    with tempfile.TemporaryDirectory() as folder:
        reference = _reference()
        reference.save_pretrained(folder)
        loaded = load_model(WorkerConfig(model=folder, device="cpu", dtype="float32", max_num_seqs=64))
    print(
        f"{reference.num_parameters() / 1e6:.0f} million parameters, float32, {torch.get_num_threads()} threads"
    )
    _serve(loaded, jobs[:2])
    _generate(reference, [(prompt, 2) for prompt, _ in jobs[:2]])
    num_tokens = {count: sum(length for _, length in jobs[:count]) for count in (_NUM_ALONE, 16, 64)}
    seconds: dict[str, list[float]] = {"theirs": [], "16": [], "1": [], "64": []}
    texts: list[list[int]] = []
    expected: list[list[int]] = []
    for _ in range(num_rounds):
        took, expected = _generate(reference, jobs[:16])
        seconds["theirs"].append(took)
        took, texts = _serve(loaded, jobs[:16])
        seconds["16"].append(took)
        seconds["1"].append(sum(_serve(loaded, [job])[0] for job in jobs[:_NUM_ALONE]))
        seconds["64"].append(_serve(loaded, jobs)[0])
    count_of = {"theirs": 16, "16": 16, "1": _NUM_ALONE, "64": 64}
    rates = {case: num_tokens[count_of[case]] / min(times) for case, times in seconds.items()}
    print(f"transformers.generate, 16 prompts left-padded: {rates['theirs']:.1f} useful tok/s")
    for count in ("1", "16", "64"):
        print(f"quire, {count:>2} concurrent: {rates[count]:.1f} tok/s")
    print(f"quire / transformers at 16: {rates['16'] / rates['theirs']:.2f} (at least 1)")
    print(f"16 concurrent / 1: {rates['16'] / rates['1']:.2f} (at least 4)")
    print(f"64 concurrent / 16: {rates['64'] / rates['16']:.2f} (at least 1.3)")
    del reference, loaded
    rate = num_tokens[16] / asyncio.run(_stream(jobs[:16]))
    print(
        f"quire, 16 streams through the stack: {rate:.1f} tok/s, {rate / rates['16']:.2f} of the worker alone"
    )
    num_equal = sum(ours == theirs for ours, theirs in zip(texts, expected, strict=True))
    print(f"outputs that are the same token for token: {num_equal} of 16")


def _jobs(count: int) -> list[Job]:
    draw = random.Random(_SEED)
    lengths = [(draw.randint(16, 256), draw.randint(32, 128)) for _ in range(count)]
    return [
        ([draw.randrange(_SHAPE["vocab_size"]) for _ in range(num_in)], num_out)
        for num_in, num_out in lengths
    ]


def _reference() -> LlamaForCausalLM:
    torch.manual_seed(_SEED)
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, dtype="float32")).eval()


def _serve(loaded: LoadedModel, jobs: list[Job]) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens of each job."""
    loaded.runner.drop_slots()
    engine = InProcessEngine.of(loaded)
    began = perf_counter()
    handles = [engine.add(prompt, Sampling(max_tokens=length, temperature=0.0)) for prompt, length in jobs]
    outputs = engine.run()
    elapsed_s = perf_counter() - began
    texts = [outputs[handle, 0].token_ids for handle in handles]
    assert [len(text) for text in texts] == [length for _, length in jobs], "a request ended early"
    return elapsed_s, texts


def _generate(reference: LlamaForCausalLM, jobs: list[Job]) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens of each job, of one left-padded batch."""
    longest = max(len(prompt) for prompt, _ in jobs)
    num_new = max(length for _, length in jobs)
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in jobs])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in jobs])
    options = GenerationConfig(max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    began = perf_counter()
    tokens = reference.generate(padded, attention_mask=mask, generation_config=options)
    elapsed_s = perf_counter() - began
    assert tokens.shape[1] == longest + num_new, "generate stopped early"
    return elapsed_s, [
        row[longest : longest + length] for row, (_, length) in zip(tokens.tolist(), jobs, strict=True)
    ]


async def _stream(jobs: list[Job]) -> float:
    """Seconds, by three processes and this client."""
    config = _SHAPE | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    model = Model(
        name="random", config=config, max_model_len=1024, max_num_seqs=64, max_num_batched_tokens=2048
    )
    stack = Stack(model, num_tokenizers=1)
    try:
        await stack.start()
        async with open_channel(stack.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not any(each.ready for each in (await stub.ListModels(_LIST, wait_for_ready=True)).models):
                await asyncio.sleep(0.05)
            await asyncio.gather(*(_stream_one(stub, prompt[::-1], 2) for prompt, _ in jobs[:2]))
            began = perf_counter()
            await asyncio.gather(*(_stream_one(stub, *job) for job in jobs))
            return perf_counter() - began
    finally:
        await stack.stop()


async def _stream_one(
    stub: generation_pb2_grpc.GenerationServiceStub, prompt: list[int], length: int
) -> None:
    request = generation_pb2.GenerateRequest(
        token_ids=tokenizer_pb2.TokenIds(ids=prompt),
        sampling_params=sampling_pb2.SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True),
    )
    counts = [sum(len(each.token_ids) for each in answer.outputs) async for answer in stub.Generate(request)]
    assert sum(counts) == length, "a stream ended early"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
