"""Texts of an exact number of the server's own tokens, which no other request shares."""

import random
from dataclasses import dataclass

from corral.bench.dialects import Ask
from corral.bench.target import Target, ask

# With a space before them, one token each in nearly every tokeniser; `calibrate` makes sure.
WORDS = tuple(
    "time people way water word sound place year day work part number line world name form house light "  # noqa: SIM905
    "story land animal page letter mother answer father picture play river school plant food sun state "
    "city earth eye head paper group music color tree book hand point side ship wind rock order fire "
    "south problem piece space hour morning body family direction power town machine force plane system "
    "table green window summer winter road garden bridge market village island valley mountain forest "
    "lake bird horse dog cat fish stone metal glass cotton silver gold north east west door wall floor "
    "roof kitchen dinner apple bread salt sugar coffee doctor teacher king queen soldier artist writer "
    "engine train boat car wheel hammer needle paint letter history science language number question "
    "reason result idea plan dream color shape size weight length speed heat cold rain snow storm cloud "
    "moon star sky field farm cow sheep egg milk cheese butter".split()
)
_SAMPLE = 120  # words of the first text that is measured


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes texts of known length. The server adds `overhead` tokens (the first one, a template)."""

    words: tuple[str, ...]
    overhead: int
    exact: bool  # the server counted, so lengths are in its tokens

    def text(self, tokens: int, seed: str) -> str:
        """A text of `tokens` tokens; another seed gives another text from its first words on."""
        return "".join(self._words(tokens - self.overhead, seed))

    def continued(self, prefix_tokens: int, prefix_seed: str, tokens: int, seed: str) -> str:
        """A text of `tokens` tokens whose first `prefix_tokens` all texts with that `prefix_seed` share."""
        return self.text(prefix_tokens, prefix_seed) + "".join(self._words(tokens - prefix_tokens, seed))

    def _words(self, count: int, seed: str) -> list[str]:
        choose = random.Random(seed)
        return [f" {choose.choice(self.words)}" for _ in range(max(1, count))]


async def calibrate(target: Target) -> Prompts:
    """Keep the words that are one token of this server's, and find its overhead; a few short requests."""
    words = tuple(dict.fromkeys(WORDS))
    base = await _count(target, f" {words[0]} {words[0]}")
    if not base:
        return Prompts(words, 1, exact=False)
    overhead = base - 2
    kept = await _singles(target, words, overhead)
    return Prompts(kept, overhead, exact=True) if len(kept) >= 20 else Prompts(words, overhead, exact=False)


async def _singles(target: Target, words: tuple[str, ...], overhead: int) -> tuple[str, ...]:
    """Of these words those that are one token each; halves of a group tell where others are."""
    parts = (
        [words[i : i + _SAMPLE] for i in range(0, len(words), _SAMPLE)] if len(words) > _SAMPLE else [words]
    )
    if len(parts) == 1:
        extra = await _count(target, "".join(f" {word}" for word in words)) - overhead - len(words)
        if extra == 0 or len(words) == 1:
            return () if extra else words
        parts = [words[: len(words) // 2], words[len(words) // 2 :]]
    found = [await _singles(target, part, overhead) for part in parts]
    return tuple(word for part in found for word in part)


async def _count(target: Target, text: str) -> int:
    """Tokens of a prompt by the server's count; 0 if it does not count."""
    reply = await ask(target, Ask(text, 1))
    return 0 if reply.error and not reply.prompt_tokens else reply.prompt_tokens
