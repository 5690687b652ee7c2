"""The formats in which models write tool calls, as a model writes them: what the parsers have to read back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `write` is given calls, at least one."""

    write: Callable[[Sequence[Call]], str]
    may_follow_text: bool = True
    writes_bare_strings: bool = False
    """Whether strings stand in the text as they are, so that they must not hold the format's tags."""


def _json(name_key: str, arguments_key: str, call: Call) -> str:
    return json.dumps({name_key: call[0], arguments_key: call[1]}, ensure_ascii=False)


def _object(call: Call) -> str:
    return _json("name", "arguments", call)


def _list(calls: Sequence[Call]) -> str:
    return "[" + ", ".join(map(_object, calls)) + "]"


def _each(before: str, after: str, between: str = "\n") -> Callable[[Sequence[Call]], str]:
    return lambda calls: between.join(before + _object(call) + after for call in calls)


def _llama(between: str, before: str = "") -> Callable[[Sequence[Call]], str]:
    return lambda calls: before + between.join(_json("name", "parameters", call) for call in calls)


def _mistral(before_arguments: str) -> Callable[[Sequence[Call]], str]:
    return lambda calls: "".join(
        f"[TOOL_CALLS]{name}{before_arguments}{json.dumps(arguments)}" for name, arguments in calls
    )


def _deepseek_v3(calls: Sequence[Call]) -> str:
    each = (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return "<｜tool▁calls▁begin｜>" + "\n".join(each) + "<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Sequence[Call]) -> str:
    each = (
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return "<｜tool▁calls▁begin｜>" + "".join(each) + "<｜tool▁calls▁end｜>"


def _kimi(calls: Sequence[Call]) -> str:
    each = (
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{json.dumps(arguments)}"
        "<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return "<|tool_calls_section_begin|>" + "".join(each) + "<|tool_calls_section_end|>"


def _python(before: str, between: str, after: str) -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        each = (
            f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
            for name, arguments in calls
        )
        return before + between.join(each) + after

    return write


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _qwen_call(call: Call) -> str:
    name, arguments = call
    inside = "".join(f"<parameter={key}>\n{_bare(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<function={name}>\n{inside}</function>"


def _qwen(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_qwen_call(call)}\n</tool_call>" for call in calls)


def _seed(calls: Sequence[Call]) -> str:
    return "\n".join(f"<seed:tool_call>\n{_qwen_call(call)}\n</seed:tool_call>" for call in calls)


def _minimax(calls: Sequence[Call]) -> str:
    each = (
        f'<invoke name="{name}">\n'
        + "".join(
            f'<parameter name="{key}">\n{_bare(value)}\n</parameter>\n' for key, value in arguments.items()
        )
        + "</invoke>\n"
        for name, arguments in calls
    )
    return "<minimax:tool_call>\n" + "".join(each) + "</minimax:tool_call>"


def _glm(calls: Sequence[Call]) -> str:
    return "\n".join(
        f"<tool_call>{name}\n"
        + "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{_bare(value)}</arg_value>\n"
            for key, value in arguments.items()
        )
        + "</tool_call>"
        for name, arguments in calls
    )


def _dsml(calls: Sequence[Call]) -> str:
    each = (
        f'<｜DSML｜invoke name="{name}">\n'
        + "".join(
            f'<｜DSML｜parameter name="{key}" string="{str(isinstance(value, str)).lower()}">{_bare(value)}'
            "</｜DSML｜parameter>\n"
            for key, value in arguments.items()
        )
        + "</｜DSML｜invoke>\n"
        for name, arguments in calls
    )
    return "<｜DSML｜function_calls>\n" + "".join(each) + "</｜DSML｜function_calls>"


FORMATS: dict[str, list[Format]] = {
    "deepseek_v3": [Format(_deepseek_v3)],
    "deepseek_v31": [Format(_deepseek_v31)],
    "deepseek_v32": [Format(_dsml, writes_bare_strings=True)],
    "glm45": [Format(_glm, writes_bare_strings=True)],
    "glm47": [Format(_glm, writes_bare_strings=True)],
    "granite": [
        Format(lambda calls: "<|tool_call|>" + _list(calls)),
        Format(lambda calls: "<tool_call>" + _list(calls)),
        Format(_list, may_follow_text=False),
    ],
    "granite-20b-fc": [Format(_each("<function_call> ", ""))],
    "granite4": [Format(_each("<tool_call>\n", "\n</tool_call>"))],
    "hermes": [
        Format(_each("<tool_call>\n", "\n</tool_call>")),
        Format(_each("<tool_call>", "")),
        Format(lambda calls: "".join(f"<tool_call>{_rearranged(call)}</tool_call>" for call in calls)),
    ],
    "hunyuan_a13b": [Format(lambda calls: f"<tool_calls>{_list(calls)}</tool_calls>")],
    "internlm": [Format(_each("<|action_start|><|plugin|>\n", "<|action_end|>"))],
    "jamba": [Format(lambda calls: f"<tool_calls>{_list(calls)}</tool_calls>")],
    "kimi_k2": [Format(_kimi)],
    "lfm2": [Format(_python("<|tool_call_start|>[", ", ", "]<|tool_call_end|>"))],
    "llama3_json": [
        Format(_llama("; "), may_follow_text=False),
        Format(_llama("\n"), may_follow_text=False),
        Format(_llama("; ", "<|python_tag|>")),
    ],
    "llama4_json": [Format(_llama("; "), may_follow_text=False)],
    "llama4_pythonic": [
        Format(_python("<|python_start|>[", ", ", "]<|python_end|>")),
        Format(_python("[", ", ", "]"), may_follow_text=False),
    ],
    "longcat": [Format(_each("<longcat_tool_call>\n", "\n</longcat_tool_call>"))],
    "minimax_m2": [Format(_minimax, writes_bare_strings=True)],
    "mistral": [
        Format(lambda calls: "[TOOL_CALLS] " + _list(calls)),
        Format(_mistral("")),
        Format(_mistral("[ARGS]")),
        Format(_mistral("[CALL_ID]a1B2c3D4e[ARGS]")),
    ],
    "olmo3": [Format(_python("<function_calls>\n", "\n", "\n</function_calls>"))],
    "phi4_mini_json": [Format(lambda calls: "functools" + _list(calls))],
    "pythonic": [Format(_python("[", ", ", "]"), may_follow_text=False)],
    "qwen3_coder": [
        Format(_qwen, writes_bare_strings=True),
        Format(lambda calls: "\n".join(map(_qwen_call, calls)), writes_bare_strings=True),
    ],
    "qwen3_xml": [Format(_qwen, writes_bare_strings=True)],
    "seed_oss": [Format(_seed, writes_bare_strings=True)],
}


def _rearranged(call: Call) -> str:
    """Arguments before the name, and as JSON inside a string."""
    return json.dumps({"id": 1, "arguments": json.dumps(call[1]), "name": call[0]})
