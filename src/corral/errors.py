"""Every error that corral raises on purpose.

CorralError
├── UserError            the caller's mistake; the message names the remedy
│   ├── InvalidRequest   a field of a request is wrong (`param` names it)
│   │   └── PromptTooLong    the prompt does not fit the context (both lengths are known)
│   │       └── PromptTooLarge   so many bytes that its tokens were not counted
│   ├── ModelNotFound    no such model in the store (`suggestion` may name a near one)
│   ├── InvalidName      not a model name
│   ├── UnsupportedModel an architecture, tensor type or tokeniser that this version cannot run
│   ├── CorruptModel     a model file that lies about itself or was cut off
│   ├── PullFailed       a source could not deliver, or delivered the wrong bytes
│   └── OutOfMemory      the model or its KV cache does not fit the budget (both figures are known)
└── ServiceError         not the caller's fault
    ├── Overloaded       the queue is full; try again later
    ├── ShuttingDown     the server is draining
    └── EngineFailed     an engine process died, hung, or refused to start
"""


class CorralError(Exception):
    """The root of the tree."""


class UserError(CorralError):
    """The caller can put this right; the message says how."""


class InvalidRequest(UserError):
    """A request field has the wrong type or value."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt (and the tokens asked for) exceed the context, all in tokens.

    `limit` says in brackets what the context is limited by, where that is not the model.
    """

    def __init__(
        self, prompt: int, context: int, wanted: int = 0, *, param: str = "messages", limit: str = ""
    ):
        asked = f" and {wanted} were requested for the reply" if wanted else ""
        super().__init__(
            f"This model's context is {context} tokens{limit}, but the prompt has {prompt}{asked}. "
            "Shorten the prompt or ask for fewer tokens.",
            param,
        )
        self.prompt, self.context, self.wanted = prompt, context, wanted


class PromptTooLarge(PromptTooLong):
    """The prompt has so many bytes that it cannot fit the context, whatever its tokens are."""

    def __init__(self, size: int, context: int, *, param: str = "messages", limit: str = ""):
        InvalidRequest.__init__(
            self,
            f"This model's context is {context} tokens{limit}, but the prompt has {size} bytes, far too "
            "many to fit. Shorten the prompt.",
            param,
        )
        self.prompt, self.context, self.wanted = 0, context, 0


class ModelNotFound(UserError):
    """No model of that name is in the store."""

    def __init__(self, name: str, suggestion: str | None = None, remedy: str = ""):
        hint = f", did you mean '{suggestion}'?" if suggestion else ""
        super().__init__(f"model '{name}' not found{hint}{remedy}")
        self.name, self.suggestion = name, suggestion


class InvalidName(UserError):
    """Not a model name in the form [host/][namespace/]model[:tag]."""


class UnsupportedModel(UserError):
    """The file is whole, but this version cannot run it; the message lists what it can."""


class CorruptModel(UserError):
    """The file contradicts itself or its size."""


class PullFailed(UserError):
    """No source could deliver the model."""


class OutOfMemory(UserError):
    """Weights or KV cache do not fit the memory budget."""


class ServiceError(CorralError):
    """The server cannot answer now."""


class Overloaded(ServiceError):
    """The queue is full."""


class ShuttingDown(ServiceError):
    """The server is draining and takes no new work."""


class EngineFailed(ServiceError):
    """An engine process died, hung or did not start."""
