"""Prompts to token ids that fit the context: refused when too long, or cut as Ollama cuts."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from corral.engine.admission import check_tokens
from corral.errors import InvalidRequest, PromptTooLarge, PromptTooLong
from corral.pool.pool import LoadedModel
from corral.server.generation import Conversation, Generation, Prompt, Think, TokenisedPrompt
from corral.types import SamplingParams

log = logging.getLogger(__name__)

# A prompt with more bytes than this for each token of the context is too long without being tokenised.
BYTES_PER_TOKEN = 16


async def read_prompts(
    model: LoadedModel, generation: Generation, default_context: int
) -> tuple[tuple[TokenisedPrompt, ...], SamplingParams]:
    """Tokenise every prompt on a thread; these, and the request's parameters as the engine gets them.

    default_context: the operator's, in tokens, for a request that names none; 0 = the model's own.
    """
    return await asyncio.to_thread(_Reader(model, generation, default_context).read_all)


class _Reader:
    """Reads one request's prompts; everything here runs on a worker thread."""

    def __init__(self, model: LoadedModel, generation: Generation, default_context: int):
        self.model, self.generation = model, generation
        wanted = generation.params.context or default_context or model.info.context_length
        self.context = min(wanted, model.info.context_length, model.info.kv_tokens)
        conversation = any(isinstance(prompt, Conversation) for prompt in generation.prompts)
        self.field = "messages" if conversation else "prompt"
        small_cache = self.context == model.info.kv_tokens < model.info.context_length
        self.limit = " (all that its KV cache holds; CORRAL_KV_CACHE sets that)" if small_cache else ""

    def read_all(self) -> tuple[tuple[TokenisedPrompt, ...], SamplingParams]:
        prompts = tuple(self._read(prompt) for prompt in self.generation.prompts)
        return prompts, self._engine_params(max(len(prompt.ids) for prompt in prompts))

    def _engine_params(self, longest: int) -> SamplingParams:
        """With the context decided, the reply's length where it is to fit, and the tokens that end a reply:
        the tokeniser knows them, and the engine has none."""
        params, max_tokens = self.generation.params, self.generation.params.max_tokens
        if self.generation.shrink_to_fit and max_tokens is not None:
            max_tokens = min(max_tokens, self.context - longest)
        ends = () if self.generation.ending.ignore_eos else sorted(self.model.tokenizer.eos_ids)
        sayable = self.model.engine.ready.vocab_size  # a tokeniser may know more than the model has rows for
        stops = (*params.stop_token_ids, *(token for token in ends if token < sayable))
        return dataclasses.replace(params, context=self.context, max_tokens=max_tokens, stop_token_ids=stops)

    def _read(self, prompt: Prompt) -> TokenisedPrompt:
        if isinstance(prompt, list):
            text = self._decode(prompt) if self.generation.echo else ""
            return self._fit(TokenisedPrompt(prompt, text), None)
        if isinstance(prompt, Conversation):
            check_tokens("context", prompt.context, self.model.tokenizer.vocab_size)
            return self._fit(*self._read_conversation(prompt))
        text = self._within_bytes(prompt)
        ids = self._encode(text)
        return self._fit(TokenisedPrompt(ids, text if self.generation.echo else ""), None)

    # Token ids

    def _encode(self, text: str) -> list[int]:
        tokenizer = self.model.tokenizer
        add_bos = self.generation.add_bos and tokenizer.add_bos
        ids = tokenizer.encode(text, special=True, add_bos=add_bos)
        if add_bos and ids[:2] == [tokenizer.bos_id, tokenizer.bos_id]:
            del ids[0]  # the text brought its own
        if not ids and tokenizer.bos_id is not None and tokenizer.bos_id >= 0:
            ids = [tokenizer.bos_id]
        if not ids:
            raise InvalidRequest("prompt must not be empty", "prompt")
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        tokenizer = self.model.tokenizer
        return b"".join(tokenizer.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def _render(self, conversation: Conversation) -> list[int]:
        template = self.model.template
        system = any(message.role == "system" for message in conversation.messages)
        if system and not template.supports_system:
            raise InvalidRequest("the model's chat template has no place for a system message", "messages")
        think = conversation.think
        if think and think.wanted and not template.supports_thinking:
            name = self.generation.model.name.display
            raise InvalidRequest(f'"{name}" does not support thinking; leave {think.field} out', think.field)
        ids = template.encode(conversation.messages, **_thinking_options(think))
        if conversation.context:
            repeated = ids[:1] == [self.model.tokenizer.bos_id]  # the earlier exchange has it already
            ids[: int(repeated)] = conversation.context
        return ids

    # Length

    def _within_bytes(self, text: str) -> str:
        limit = BYTES_PER_TOKEN * self.context
        data = text.encode()
        if len(data) <= limit:
            return text
        if not self.generation.overflow.cut:
            raise PromptTooLarge(len(data), self.context, param=self.field, limit=self.limit)
        return data[-limit:].decode("utf-8", "ignore")

    def _read_conversation(
        self, conversation: Conversation
    ) -> tuple[TokenisedPrompt, Callable[[], list[int]]]:
        size = sum(message.size for message in conversation.messages)
        if size > BYTES_PER_TOKEN * self.context:
            if not self.generation.overflow.cut:
                raise PromptTooLarge(size, self.context, param=self.field, limit=self.limit)
            conversation = self._drop_bytes(conversation)
        ids = self._render(conversation)
        return TokenisedPrompt(ids, chat=True), lambda: self._drop_messages(conversation)

    def _drop_bytes(self, conversation: Conversation) -> Conversation:
        """The newest text that may be worth tokenising."""
        left = BYTES_PER_TOKEN * self.context
        kept = []
        for message in reversed(conversation.messages):
            message = message.last_bytes(left)
            left -= message.size
            if message.size or message.role == "system":
                kept.append(message)
        return dataclasses.replace(conversation, messages=tuple(reversed(kept)))

    def _drop_messages(self, conversation: Conversation) -> list[int]:
        """Leave out the fewest of the oldest messages; system messages and the last one always stay.
        What remains does not begin with a reply, which many templates refuse."""
        messages = conversation.messages
        old = [i for i, message in enumerate(messages[:-1]) if message.role != "system"]
        cuts = [k for k, i in enumerate(old) if messages[i].role != "assistant"] + [len(old)]
        low, high = 0, len(cuts) - 1  # the last cut is the most that can be done
        best = self._render(_without(conversation, old))
        while low < high:
            middle = (low + high) // 2
            ids = self._render(_without(conversation, old[: cuts[middle]]))
            if len(ids) < self.context:
                high, best = middle, ids
            else:
                low = middle + 1
        return best

    def _too_long(self, length: int, wanted: int = 0) -> PromptTooLong:
        return PromptTooLong(length, self.context, wanted, param=self.field, limit=self.limit)

    def _fit(self, prompt: TokenisedPrompt, shorten: Callable[[], list[int]] | None) -> TokenisedPrompt:
        overflow, length = self.generation.overflow, len(prompt.ids)
        wanted = self.generation.params.max_tokens
        if not overflow.cut:
            explicit = wanted is not None and not self.generation.shrink_to_fit
            need = (wanted or 0) if explicit else 1
            if length + need > self.context:
                raise self._too_long(length, need if explicit else 0)
            return prompt
        if length + (0 if wanted == 0 else 1) <= self.context:
            return prompt
        ids = shorten() if shorten else prompt.ids
        if len(ids) >= self.context:
            if not overflow.shift:
                raise self._too_long(len(ids))
            ids = cut_middle(ids, self.context, overflow.keep)
        log.warning("prompt of %d tokens cut to %d to fit a context of %d", length, len(ids), self.context)
        return dataclasses.replace(prompt, ids=ids, dropped=length - len(ids))


def cut_middle(ids: Sequence[int], context: int, keep: int) -> list[int]:
    """Keep the first `keep` tokens and as much of the end as leaves half of the rest of the context free."""
    keep = max(0, min(keep, context // 2))
    left = max(context - max((context - keep) // 2, 1), 1)
    tail = max(left - keep, 0)
    return [*ids[: min(keep, left)], *ids[len(ids) - tail :]]


def _without(conversation: Conversation, dropped: Sequence[int]) -> Conversation:
    gone = set(dropped)
    kept = tuple(message for i, message in enumerate(conversation.messages) if i not in gone)
    return dataclasses.replace(conversation, messages=kept)


def _thinking_options(think: Think | None) -> dict[str, Any]:
    """What templates read: Qwen's and SmolLM's name, DeepSeek's and Granite's, gpt-oss's for the effort."""
    if think is None:
        return {}
    effort = {"reasoning_effort": think.effort} if think.effort else {}
    return {"enable_thinking": think.wanted, "thinking": think.wanted, **effort}
