"""Which parser reads a model's replies: by strings in its chat template, not by its name."""

import importlib
from collections.abc import Callable, Sequence

from corral.text.parsers.parser import Parser
from corral.text.tokenizer import Tokenizer

MakeParser = Callable[[Tokenizer, Sequence[int]], Parser]  # of the prompt's ids too

# Strings that a template has -> the parser of its replies, imported when wanted; the first fit counts.
PARSERS: tuple[tuple[tuple[str, ...], str], ...] = ((("</think>",), "corral.text.parsers.think:ThinkParser"),)


def find_parser(template: str) -> MakeParser | None:
    """What makes the parser of a chat's replies; None where all is text."""
    for strings, location in PARSERS:
        if all(string in template for string in strings):
            module, name = location.split(":")
            made: MakeParser = getattr(importlib.import_module(module), name)
            return made
    return None
