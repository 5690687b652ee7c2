"""Chat templates: the last message left open, and what a template may not do."""

import pytest
from quire_tokenizer.chat_template import ChatTemplate

from quire.errors import InvalidRequest

_PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_TRIMMING = _PLAIN.replace("m.content", "m.content | trim")


def _messages(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents)
    ]


def _continued(source: str, *contents: str) -> str:
    template = ChatTemplate(source, {})
    return template.render(_messages(*contents), add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("source", [_PLAIN, _TRIMMING])
@pytest.mark.parametrize("content", ["", "Sure, here", "user", "</user>"])
def test_continued_message_ends_where_its_content_ends(source: str, content: str) -> None:
    assert _continued(source, "Hi", content) == f"<user>Hi</user>\n<assistant>{content}"


def test_spaces_at_the_end_stay_unless_the_template_trims() -> None:
    assert _continued(_PLAIN, "Hi", "One, \n") == "<user>Hi</user>\n<assistant>One, \n"
    assert _continued(_TRIMMING, "Hi", "One, \n") == "<user>Hi</user>\n<assistant>One,"


def test_template_that_drops_the_last_message_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="leaves the last message out") as refused:
        _continued("{{ messages[0].content }}", "Hi", "Sure")
    assert refused.value.field == "chat.continue_final_message"


def test_template_reaches_nothing_outside_its_sandbox() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(InvalidRequest, match=r"chat\.messages"):
            ChatTemplate(source, {}).render(_messages("Hi"))


def test_endless_output_is_cut_off() -> None:
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="longer than"):
        ChatTemplate(source, {}).render(_messages("Hi"))
