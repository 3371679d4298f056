"""The request in the middle of every API, and the events that answer it."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from corral.store.local import StoredModel
from corral.text.messages import Message, Text
from corral.text.parsers.parser import Said
from corral.types import NO_SCORES, PLAIN_ENDING, Ending, FinishReason, SamplingParams, Scores, SequenceStats


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template, after the tokens of an earlier exchange."""

    messages: tuple[Message, ...]
    context: Sequence[int] = ()
    think: "Think | None" = None  # None = as the model's template has it


@dataclass(frozen=True, slots=True)
class Think:
    """Whether a model that can is to think before it answers; asking one that cannot is an error."""

    wanted: bool
    effort: str = ""  # in the API's words
    field: str = "think"  # of the request


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """The messages, behind the model's own system message if they bring none."""
    if system and messages[0].role != "system":
        return (Message("system", (Text(system),)), *messages)
    return tuple(messages)


# Raw text (special text in it counts as such), token ids as they are, or messages for the chat template.
Prompt = str | list[int] | Conversation


@dataclass(frozen=True, slots=True)
class Overflow:
    """What to do with a prompt that is longer than the context: refuse it, or cut it as Ollama does."""

    cut: bool = False  # drop old messages
    shift: bool = True  # and when one message alone is too long, drop its middle
    keep: int = 4  # tokens at the start that cutting leaves alone


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate: `n` replies to each prompt, numbered prompt by prompt."""

    model: StoredModel
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    ending: Ending = PLAIN_ENDING
    scores: Scores = NO_SCORES  # of the prompt too where the first reply to each is to bring them
    n: int = 1
    echo: bool = False  # each reply begins with its prompt
    shrink_to_fit: bool = False  # max_tokens is the API's default: lower it to what the context leaves
    overflow: Overflow = Overflow()
    add_bos: bool = True  # where the model wants one
    skip_special: bool = True  # leave control tokens out of the text
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a reply with its bytes; `logprob` is None for a prompt's first token."""

    id: int
    data: bytes
    logprob: float | None = None
    offset: int = 0  # characters of the reply before it
    top: tuple["ScoredToken", ...] | None = None  # the most likely tokens, best first


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """A prompt as the engine gets it."""

    ids: Sequence[int]
    text: str = ""  # only where it is to be echoed
    chat: bool = False  # the reply is a chat's, in which the model may mark thoughts
    dropped: int = 0  # tokens cut away to fit the context


@dataclass(frozen=True, slots=True)
class Admitted:
    """The model is loaded and every prompt fits."""

    prompts: tuple[TokenisedPrompt, ...]
    load_ns: int


class Delta(msgspec.Struct, frozen=True):
    """More of reply `index`. `tokens` only where log-probs were asked for; they may run ahead of the text."""

    index: int
    said: Said
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Reply `index` is complete."""

    index: int
    reason: FinishReason
    stats: SequenceStats
    ids: Sequence[int] = ()  # the reply's tokens
    total_ns: int = 0  # since the request began


Event = Admitted | Delta | Finished


@dataclass(frozen=True, slots=True)
class WholeReply:
    """All of one reply."""

    text: str
    thoughts: str
    tokens: tuple[ScoredToken, ...]
    end: Finished
