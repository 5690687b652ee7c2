"""What a check found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line of the table."""

    check: str
    passed: bool | None
    """None where the check cannot run here."""
    detail: str

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "not run"}[self.passed]
        return f"{word:8}{self.check}: {self.detail}"
