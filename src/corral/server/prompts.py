"""Prompts to token ids that fit the context: refused when too long, or cut as Ollama cuts."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence

from corral.engine.admission import check_tokens
from corral.errors import InvalidRequest, PromptTooLarge, PromptTooLong
from corral.pool.pool import LoadedModel
from corral.server.generation import Conversation, Generation, Prompt, TokenisedPrompt
from corral.types import SamplingParams

log = logging.getLogger(__name__)

# A prompt with more bytes than this for each token of the context is too long without being tokenised.
BYTES_PER_TOKEN = 16


async def read_prompts(
    model: LoadedModel, generation: Generation, default_context: int
) -> tuple[tuple[TokenisedPrompt, ...], SamplingParams]:
    """Tokenise every prompt on a thread, and settle the context and the number of tokens to generate."""
    info = model.info
    wanted = generation.params.context or default_context or info.context_length
    params = dataclasses.replace(generation.params, context=min(wanted, info.context_length, info.kv_tokens))
    reader = _Reader(model, generation, params)
    return await asyncio.to_thread(reader.read_all)


class _Reader:
    """Reads one request's prompts; everything here runs on a worker thread."""

    def __init__(self, model: LoadedModel, generation: Generation, params: SamplingParams):
        self.model, self.generation, self.params = model, generation, params
        self.context = params.context or model.info.context_length
        conversation = any(isinstance(prompt, Conversation) for prompt in generation.prompts)
        self.field = "messages" if conversation else "prompt"
        small_cache = self.context == model.info.kv_tokens < model.info.context_length
        self.limit = " (all that its KV cache holds; CORRAL_KV_CACHE sets that)" if small_cache else ""

    def read_all(self) -> tuple[tuple[TokenisedPrompt, ...], SamplingParams]:
        params = self.params
        self._check_ids("logit_bias", tuple(params.logit_bias))
        self._check_ids("stop_token_ids", params.stop_token_ids)
        prompts = tuple(self._read(prompt) for prompt in self.generation.prompts)
        if self.generation.shrink_to_fit and params.max_tokens is not None:
            room = self.context - max(len(prompt.ids) for prompt in prompts)
            params = dataclasses.replace(params, max_tokens=min(params.max_tokens, room))
        return prompts, params

    def _read(self, prompt: Prompt) -> TokenisedPrompt:
        if isinstance(prompt, tuple):
            self._check_ids("prompt", prompt)
            return self._fit(
                TokenisedPrompt(prompt, self._decode(prompt) if self.generation.echo else ""), None
            )
        if isinstance(prompt, Conversation):
            self._check_ids("context", prompt.context)
            return self._fit(*self._read_conversation(prompt))
        text = self._within_bytes(prompt)
        ids = self._encode(text)
        return self._fit(TokenisedPrompt(ids, text if self.generation.echo else ""), None)

    # Token ids

    def _encode(self, text: str) -> tuple[int, ...]:
        tokenizer = self.model.tokenizer
        add_bos = self.generation.add_bos and tokenizer.add_bos
        ids = tuple(tokenizer.encode(text, special=True, add_bos=add_bos))
        if add_bos and ids[:2] == (tokenizer.bos_id, tokenizer.bos_id):
            ids = ids[1:]  # the text brought its own
        if not ids and tokenizer.bos_id is not None and tokenizer.bos_id >= 0:
            ids = (tokenizer.bos_id,)
        if not ids:
            raise InvalidRequest("prompt must not be empty", "prompt")
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        tokenizer = self.model.tokenizer
        return b"".join(tokenizer.token_bytes(token) for token in ids).decode("utf-8", "replace")

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        check_tokens(field, ids, self.model.tokenizer.vocab_size)

    def _render(self, conversation: Conversation) -> tuple[int, ...]:
        template = self.model.template
        system = any(message["role"] == "system" for message in conversation.messages)
        if system and not template.supports_system:
            raise InvalidRequest("the model's chat template has no place for a system message", "messages")
        ids = tuple(template.encode(conversation.messages))
        bos = self.model.tokenizer.bos_id
        if conversation.context and ids[:1] == (bos,):
            ids = ids[1:]  # the earlier exchange has it already
        return conversation.context + ids

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
    ) -> tuple[TokenisedPrompt, Callable[[], tuple[int, ...]] | None]:
        size = sum(len(message["content"].encode()) for message in conversation.messages)
        if size > BYTES_PER_TOKEN * self.context:
            if not self.generation.overflow.cut:
                raise PromptTooLarge(size, self.context, param=self.field, limit=self.limit)
            conversation = self._drop_bytes(conversation)
        ids = self._render(conversation)
        return TokenisedPrompt(ids), lambda: self._drop_messages(conversation)

    def _drop_bytes(self, conversation: Conversation) -> Conversation:
        """The newest text that may be worth tokenising."""
        left = BYTES_PER_TOKEN * self.context
        kept = []
        for message in reversed(conversation.messages):
            text = message["content"].encode()[-left:].decode("utf-8", "ignore") if left > 0 else ""
            left -= len(text.encode())
            if text or message["role"] == "system":
                kept.append({**message, "content": text})
        return Conversation(tuple(reversed(kept)), conversation.context)

    def _drop_messages(self, conversation: Conversation) -> tuple[int, ...]:
        """Leave out the fewest of the oldest messages; system messages and the last one always stay.
        What remains does not begin with a reply, which many templates refuse."""
        messages = conversation.messages
        old = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
        cuts = [k for k, i in enumerate(old) if messages[i]["role"] != "assistant"] + [len(old)]
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

    def _fit(self, prompt: TokenisedPrompt, shorten: Callable[[], tuple[int, ...]] | None) -> TokenisedPrompt:
        overflow, length = self.generation.overflow, len(prompt.ids)
        wanted = self.params.max_tokens
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


def cut_middle(ids: tuple[int, ...], context: int, keep: int) -> tuple[int, ...]:
    """Keep the first `keep` tokens and as much of the end as leaves half of the rest of the context free."""
    keep = max(0, min(keep, context // 2))
    left = max(context - max((context - keep) // 2, 1), 1)
    tail = max(left - keep, 0)
    return ids[: min(keep, left)] + ids[len(ids) - tail :]


def _without(conversation: Conversation, dropped: Sequence[int]) -> Conversation:
    gone = set(dropped)
    kept = tuple(message for i, message in enumerate(conversation.messages) if i not in gone)
    return Conversation(kept, conversation.context)
