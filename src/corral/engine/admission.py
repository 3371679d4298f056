"""What an engine accepts: checked before a request is queued, so that no step can fail because of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from corral.engine.protocol import MAX_FRAME
from corral.errors import InvalidRequest, PromptTooLong
from corral.types import NO_SCORES, SamplingParams, Scores

# Bytes of a frame that one alternative takes at most; the token itself and its names take as much as three.
_SCORE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loaded model can take, in tokens."""

    context_length: int
    vocab_size: int
    kv_tokens: int  # the longest sequence that the KV cache holds

    def context_of(self, params: SamplingParams) -> int:
        """The context that a request has: its own wish, at most the model's."""
        return min(self.context_length, params.context or self.context_length)


def check_request(
    prompt: Sequence[int], params: SamplingParams, limits: Limits, scores: Scores = NO_SCORES
) -> None:
    """Raise InvalidRequest or PromptTooLong unless the engine can run this request."""
    if not prompt:
        raise InvalidRequest("the prompt is empty; send at least one token", "prompt")
    check_tokens("prompt", prompt, limits.vocab_size)
    check_tokens("logit_bias", tuple(params.logit_bias), limits.vocab_size)
    check_tokens("stop_token_ids", params.stop_token_ids, limits.vocab_size)
    if params.seed is not None and not -(2**63) <= params.seed < 2**64:
        raise InvalidRequest("seed must fit in 64 bits", "seed")
    _check_scores(len(prompt), scores.prompt_logprobs)
    replies = params.max_tokens != 0
    context = limits.context_of(params)
    if len(prompt) + replies > context:
        raise PromptTooLong(len(prompt), context)
    if len(prompt) + replies > limits.kv_tokens:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, but the KV cache of this model holds {limits.kv_tokens}; "
            "shorten the prompt or give the cache more memory (CORRAL_KV_CACHE)",
            "prompt",
        )


def _check_scores(length: int, alternatives: int | None) -> None:
    """A prompt's log-probs come in one frame."""
    most = MAX_FRAME // _SCORE_BYTES // ((alternatives or 0) + 3) - 1
    if alternatives is not None and length > most:
        raise InvalidRequest(
            f"with {alternatives} logprobs a prompt of at most {most} tokens can be scored, not {length}; "
            "ask for fewer logprobs or split the prompt",
            "logprobs",
        )


def check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest, naming the field, unless all are token ids."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        bad = next(token for token in tokens if not 0 <= token < vocab_size)
        raise InvalidRequest(f"{name}: token {bad} is not in the vocabulary (0 to {vocab_size - 1})", name)
