"""LLM as a program uses it: the shipped model, real processes."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, SamplingParams
from quire.assets import shipped_model_path
from quire.errors import ConfigError, InvalidRequest, Unauthenticated

_GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_outputs_have_the_order_of_the_prompts_whatever_form_these_have(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("ROMEO:\n")
    prompts: list[Any] = ["ROMEO:\n", {"prompt": "JULIET:\n"}, ids, {"prompt_token_ids": ids}]
    outputs = llm.generate(prompts, _GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["ROMEO:\n", "JULIET:\n", None, None]
    assert [output.prompt_token_ids for output in outputs] == [
        ids,
        llm.get_tokenizer().encode("JULIET:\n"),
        ids,
        ids,
    ]
    texts = [output.outputs[0].text for output in outputs]
    assert texts[0] == texts[2] == texts[3]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    assert all(len(output.outputs[0].token_ids) == 12 for output in outputs)
    assert len({output.request_id for output in outputs}) == 4


def test_one_prompt_may_come_bare_as_text_or_as_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("ROMEO:\n")
    (from_text,) = llm.generate("ROMEO:\n", _GREEDY, use_tqdm=False)
    (from_ids,) = llm.generate(ids, _GREEDY, use_tqdm=False)
    assert from_text.outputs[0].text == from_ids.outputs[0].text
    assert llm.get_tokenizer().decode(from_text.outputs[0].token_ids) == from_text.outputs[0].text


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, seed=n, ignore_eos=True) for n in (1, 2, 3)]
    outputs = llm.generate(["ROMEO:\n"] * 3, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    with pytest.raises(InvalidRequest, match="2 entries for 3 prompts") as refused:
        llm.generate(["ROMEO:\n"] * 3, params[:2], use_tqdm=False)
    assert refused.value.field == "sampling_params"


def test_logprobs_and_several_sequences_have_the_fields_of_vllm(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=6, logprobs=2, ignore_eos=True)
    (output,) = llm.generate("ROMEO:\n", params, use_tqdm=False)
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert len({each.text for each in output.outputs}) == 3
    for each in output.outputs:
        assert each.logprobs is not None
        drawn = [position[token] for position, token in zip(each.logprobs, each.token_ids, strict=True)]
        assert each.cumulative_logprob == pytest.approx(math.fsum(entry.logprob for entry in drawn), abs=1e-4)
        assert all(len(position) in (2, 3) for position in each.logprobs)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(shipped_model_path(), dtype=torch.float32).eval()


@pytest.mark.parametrize("num_alternatives", [0, 3])
def test_prompt_logprobs_are_those_of_transformers_though_the_prompt_is_cached(
    llm: LLM, reference: Any, num_alternatives: int
) -> None:
    tokenizer = llm.get_tokenizer()
    prompt = tokenizer.encode(
        "O Romeo, Romeo, wherefore art thou Romeo? Deny thy father and refuse thy name. " * 8
    )
    llm.generate(prompt, _GREEDY, use_tqdm=False)
    (cached,) = llm.generate(prompt, _GREEDY, use_tqdm=False)
    assert cached.num_cached_tokens and cached.num_cached_tokens > 100
    assert cached.prompt_logprobs is None
    asking = replace(_GREEDY, prompt_logprobs=num_alternatives)
    (output,) = llm.generate(prompt, asking, use_tqdm=False)
    assert output.num_cached_tokens == 0
    assert output.outputs[0].token_ids == cached.outputs[0].token_ids
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0].double().log_softmax(1)
    assert output.prompt_logprobs is not None
    first, *rest = output.prompt_logprobs
    assert first is None
    for row, token, entries in zip(expected, prompt[1:], rest, strict=False):
        assert entries is not None
        assert next(iter(entries)) == token
        best = set(row.topk(num_alternatives).indices.tolist())
        assert {token, *best} == set(entries)
        for token_id, entry in entries.items():
            assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
            assert entry.rank == 1 + int((row > row[token_id]).sum())
            assert entry.decoded_token == tokenizer.decode([token_id])
    assert len(rest) == len(prompt) - 1


def test_a_stop_string_is_the_stop_reason(llm: LLM) -> None:
    (whole,) = llm.generate("ROMEO:\n", SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    stop = whole.outputs[0].text[8:11]
    (output,) = llm.generate(
        "ROMEO:\n", SamplingParams(temperature=0, max_tokens=20, stop=stop), use_tqdm=False
    )
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)
    assert output.outputs[0].text == whole.outputs[0].text[: whole.outputs[0].text.index(stop)]


def test_a_conversation_is_rendered_with_the_models_template(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Speak"}, {"type": "text", "text": "!"}]}
    ]
    (output,) = llm.chat(messages, _GREEDY, use_tqdm=False)
    plain = [{"role": "user", "content": "Speak!"}]
    rendered = llm.get_tokenizer().apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert output.prompt == rendered
    assert output.prompt_token_ids == llm.get_tokenizer().apply_chat_template(
        plain, add_generation_prompt=True
    )
    several = llm.chat([plain, plain], _GREEDY, use_tqdm=False)
    assert [each.outputs[0].text for each in several] == [output.outputs[0].text] * 2


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "user", "content": "hi", "audio": {}}, "messages[0].audio"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0]"),
    ],
)
def test_a_message_that_cannot_be_rendered_is_refused_by_name(
    llm: LLM, message: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.chat([message], _GREEDY, use_tqdm=False)
    assert refused.value.field == field


def test_a_prompt_that_is_refused_names_its_field_and_its_place_and_leaves_the_engine_usable(
    llm: LLM,
) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary") as refused:
        llm.generate([[5], [10**6], [5]], _GREEDY, use_tqdm=False)
    assert refused.value.field == "token_ids"
    assert refused.value.__notes__ == ["in prompt 1 of the batch, counted from 0"]
    for prompt, field in (({"prompt": "x", "multi_modal_data": {}}, "multi_modal_data"), ({}, "prompt")):
        with pytest.raises(InvalidRequest) as refused:
            llm.generate([prompt], _GREEDY, use_tqdm=False)
        assert refused.value.field == field
    assert llm.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].finished


def test_cached_tokens_are_counted(llm: LLM) -> None:
    prompt = [7] * 200
    llm.generate(prompt, _GREEDY, use_tqdm=False)
    (again,) = llm.generate(prompt, _GREEDY, use_tqdm=False)
    assert again.num_cached_tokens == 192


def test_no_prompts_are_no_outputs(llm: LLM) -> None:
    assert llm.generate([], _GREEDY) == []


def test_a_progress_bar_counts_to_the_end_and_any_maker_of_one_will_do(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    from tqdm import tqdm

    totals: list[tuple[int, int]] = []

    class Recorded(tqdm):
        def close(self) -> None:
            totals.append((self.n, self.total))
            super().close()

    llm.generate(["ROMEO:\n"] * 5, _GREEDY, use_tqdm=Recorded)
    assert (5, 5) in totals
    llm.generate(["ROMEO:\n"] * 5, _GREEDY)
    shown = capsys.readouterr().err
    assert "Processed prompts: 100%" in shown
    assert "tok/s" in shown


def test_another_llm_attaches_to_the_running_stack_and_leaves_it_running(llm: LLM) -> None:
    expected = llm.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].outputs[0]
    with LLM(address=llm.address) as attached:
        assert attached.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].outputs[0] == expected
    assert llm.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].outputs[0] == expected


def test_a_stack_with_a_key_is_open_to_its_own_program_and_to_those_who_have_it() -> None:
    with LLM(api_key="secret", max_num_seqs=4) as keyed:
        expected = keyed.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].outputs
        with LLM(address=keyed.address, api_key="secret") as attached:
            assert attached.generate("ROMEO:\n", _GREEDY, use_tqdm=False)[0].outputs == expected
        for key in (None, "another"):
            with LLM(address=keyed.address, api_key=key) as stranger:
                with pytest.raises(Unauthenticated):
                    stranger.generate("ROMEO:\n", _GREEDY, use_tqdm=False)


def test_without_parameters_sixteen_tokens_come_at_most(llm: LLM) -> None:
    (output,) = llm.generate("ROMEO:\n", use_tqdm=False)
    assert 1 <= len(output.outputs[0].token_ids) <= 16


def test_a_stack_that_cannot_start_is_an_error_and_leaves_no_process() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(ConfigError, match="worker process ended"):
        LLM(num_gpu_blocks_override=10**8)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


_PROGRAM = """
import json, os, signal, sys, threading
import psutil
from quire import LLM, SamplingParams
llm = LLM(max_num_seqs=4)
print(json.dumps([child.pid for child in psutil.Process().children()]), flush=True)
sys.stdin.readline()  # they must not be gone before somebody has looked at them
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("llm.shutdown(); llm.shutdown(); assert not psutil.Process().children()", 0),
        ("del llm; assert not psutil.Process().children()", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        (
            "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start(); "
            "llm.generate(['a'] * 10**5, SamplingParams(max_tokens=100), use_tqdm=False)",
            -signal.SIGINT,
        ),
    ],
    ids=["end of program", "exit", "shutdown", "garbage", "SIGKILL", "SIGTERM", "Ctrl-C"],
)
def test_no_process_outlives_the_program_however_it_ends(end: str, status: int) -> None:
    command = [sys.executable, "-c", _PROGRAM.format(end=end)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(process.stdout.readline())]
        _output, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == status, errors
    assert len(children) == 3
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert os.getpid() not in {child.pid for child in children}
