"""The many names under which a body asks for structured output, as one `StructuredOutputsParams`."""

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from quire.errors import InvalidRequest
from quire.structured_outputs import CONSTRAINTS, StructuredOutputsParams

_FORMATS = ("text", "json_object", "json_schema")


class JsonSchemaFormat(BaseModel):
    """A schema and how it is called."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's form."""

    model_config = ConfigDict(extra="allow")

    type: str
    json_schema: JsonSchemaFormat | None = None


class Constrained(Protocol):
    """A body with all the fields that can ask for it."""

    response_format: ResponseFormat | None
    structured_outputs: dict[str, Any] | None
    guided_json: dict[str, Any] | str | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def constraint_of(body: Constrained) -> StructuredOutputsParams | None:
    """What the body asks for; None for free text. Raises `InvalidRequest` where it asks for two things at once."""
    asked = {
        **_formatted(body.response_format),
        **_structured(body.structured_outputs),
        **{
            f"guided_{name}": (name, value)
            for name in ("json", "regex", "choice", "grammar")
            if (value := getattr(body, f"guided_{name}")) is not None
        },
    }
    if not asked:
        return None
    if len(asked) > 1:
        raise InvalidRequest(
            f"{' and '.join(asked)} exclude one another: at most one constraint can be set",
            field=list(asked)[-1],
        )
    ((name, value),) = asked.values()
    return StructuredOutputsParams(**{name: value})


def _formatted(wanted: ResponseFormat | None) -> dict[str, tuple[str, Any]]:
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"response_format": ("json_object", True)}
    if wanted.type != "json_schema":
        raise InvalidRequest(
            f"response_format.type={wanted.type!r}: must be one of {', '.join(_FORMATS)}",
            field="response_format",
        )
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise InvalidRequest("response_format.json_schema.schema is missing", field="response_format")
    return {"response_format": ("json", wanted.json_schema.json_schema)}


def _structured(constraint: dict[str, Any] | None) -> dict[str, tuple[str, Any]]:
    if constraint is None:
        return {}
    given = {name: value for name, value in constraint.items() if value is not None and value is not False}
    unknown = [name for name in given if name not in CONSTRAINTS]
    if unknown or len(given) != 1:
        raise InvalidRequest(
            f"structured_outputs has {', '.join(given) or 'nothing'}: exactly one of {', '.join(sorted(CONSTRAINTS))} must be set",
            field="structured_outputs",
        )
    ((name, value),) = given.items()
    return {"structured_outputs": (name, value)}
