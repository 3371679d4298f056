"""Model names in Ollama's grammar: `[scheme://][host/][namespace/]model[:tag]`."""

import re
from dataclasses import dataclass

from corral.errors import InvalidName

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"

# The first character rules out "." and "..", and no part has a slash: a name is always a safe path.
_GRAMMAR = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole name; every part has been checked against the grammar."""

    model: str
    tag: str = DEFAULT_TAG
    namespace: str = DEFAULT_NAMESPACE
    host: str = DEFAULT_HOST

    def __post_init__(self) -> None:
        for part, pattern in _GRAMMAR.items():
            if not pattern.fullmatch(getattr(self, part)):
                raise InvalidName(
                    f"'{getattr(self, part)[:100]}' cannot be the {part} of a model's name; "
                    "names look like model, model:tag or namespace/model:tag"
                )

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read a name as people write it; what is left out gets its default."""
        rest = re.sub(r"^https?://", "", text.strip())
        path, slash, last = rest.rpartition("/")
        model, colon, tag = last.partition(":")
        parts = path.split("/") if slash else []
        if len(parts) > 2:
            raise InvalidName(f"'{text[:100]}' is not a model's name: it has more than host/namespace/model")
        return cls(
            model=model,
            tag=tag if colon else DEFAULT_TAG,
            namespace=parts[-1] if parts else DEFAULT_NAMESPACE,
            host=parts[0] if len(parts) == 2 else DEFAULT_HOST,
        )

    @property
    def display(self) -> str:
        """The short form for people: default host and namespace dropped, the tag kept."""
        name = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return f"{self.namespace}/{name}" if self.namespace != DEFAULT_NAMESPACE else name

    @property
    def path(self) -> str:
        """`host/namespace/model/tag`: where the manifest lies, and the whole identity."""
        return f"{self.host}/{self.namespace}/{self.model}/{self.tag}"

    def __str__(self) -> str:
        return self.display
