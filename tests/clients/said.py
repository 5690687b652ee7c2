"""What the tests of all clients ask, and what they know of the answers."""

import json
from typing import Any

from tests.doubles.scripted_worker import say

MODEL = "quire-shakespeare"
SCRIPTED_MODEL = "scripted"

CALL = {"name": "weather", "arguments": {"place": "Köln 🙂"}}
ASKS_FOR_CALLS = "Wetter? " + say(
    "Let me see.\n" + "\n".join([f"<tool_call>\n{json.dumps(CALL, ensure_ascii=False)}\n</tool_call>"] * 2)
)
WEATHER_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER_PARAMETERS},
}
MOOD_SCHEMA: dict[str, Any] = {
    "title": "mood",
    "description": "How one feels.",
    "type": "object",
    "properties": {"mood": {"enum": ["glad", "sad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}


def is_mood(value: Any) -> bool:
    """Whether a value validates against `MOOD_SCHEMA`."""
    return (
        isinstance(value, dict)
        and value.keys() == {"mood", "sure"}
        and value["mood"] in ("glad", "sad")
        and isinstance(value["sure"], bool)
    )
