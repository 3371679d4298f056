"""What a pull reports while it works."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of progress, in Ollama's words; bytes are 0 when they are not known."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
