"""Models that think before they answer: what each API says of it, and how thinking is asked for."""

from collections.abc import Sequence
from typing import Any

import ollama
import openai
import pytest
from live_server import MODEL, Server

from corral.text.messages import Message
from corral.text.parsers.parser import Parser
from corral.text.parsers.think import ThinkParser
from fake_engine import FakeTemplate, Script

USER = [{"role": "user", "content": "hi"}]
REPLY = "<think>\nhm, {x}\n</think>\n\nHello"


class ThinkingTemplate(FakeTemplate):
    """Shows the options that it is given and the thoughts of earlier turns; a reply may begin inside."""

    supports_thinking = True
    opens = ""

    def parser(self, prompt: Sequence[int]) -> Parser:
        return ThinkParser(self.tokenizer, prompt)

    def encode(self, messages: Sequence[Message], **options: Any) -> list[int]:
        self.seen = messages, options
        return [*super().encode(messages), *self.opens.encode()]


@pytest.fixture
def template(server: Server, script: Script) -> ThinkingTemplate:
    script.text = REPLY
    template = ThinkingTemplate(server.pool.tokenizer)
    server.pool.make_template = lambda tokenizer: template
    return template


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_ollama_client_gets_thoughts_apart(
    server: Server, script: Script, template: ThinkingTemplate, batch: int
) -> None:
    script.batch = batch
    client = ollama.Client(server.url, **server.transport)
    reply = client.chat(MODEL, USER)
    assert (reply.message.thinking, reply.message.content) == ("hm, {x}", "Hello")
    assert reply.eval_count == len(REPLY) + 1
    chunks = list(client.chat(MODEL, USER, stream=True))
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == "hm, {x}"
    assert "".join(chunk.message.content for chunk in chunks) == "Hello"
    made = client.generate(MODEL, "hi", think=True)
    assert (made.thinking, made.response) == ("hm, {x}", "Hello")
    chunks = list(client.generate(MODEL, "hi", stream=True))
    assert "".join(chunk.thinking or "" for chunk in chunks) == "hm, {x}"
    assert "".join(chunk.response for chunk in chunks) == "Hello"
    client._client.close()


def test_openai_client_gets_thoughts_apart(server: Server, template: ThinkingTemplate) -> None:
    http_client = openai.DefaultHttpxClient(**server.transport)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", http_client=http_client) as client:
        reply = client.chat.completions.create(model=MODEL, messages=USER)
        assert (reply.choices[0].message.reasoning_content, reply.choices[0].message.content) == (
            "hm, {x}",
            "Hello",
        )
        assert reply.usage.completion_tokens == len(REPLY) + 1
        deltas = [
            chunk.choices[0].delta
            for chunk in client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        ]
    assert deltas[0].role == "assistant"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm, {x}"
    assert "".join(delta.content or "" for delta in deltas) == "Hello"


def test_reply_that_begins_inside_of_the_thought(
    server: Server, script: Script, template: ThinkingTemplate
) -> None:
    template.opens, script.text = "<think>\n", "hm\n</think>\nHello"
    _, reply = server.post("/api/chat", messages=USER, stream=False)
    assert reply["message"] == {"role": "assistant", "content": "Hello", "thinking": "hm"}


def test_reply_without_thoughts_has_no_field_for_them(
    server: Server, script: Script, template: ThinkingTemplate
) -> None:
    script.text = "Hello"
    _, reply = server.post("/api/chat", messages=USER, stream=False)
    assert reply["message"] == {"role": "assistant", "content": "Hello"}
    _, reply = server.post("/v1/chat/completions", messages=USER)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}


def test_raw_and_plain_completions_show_the_reply_as_it_is(
    server: Server, template: ThinkingTemplate
) -> None:
    assert server.post("/api/generate", prompt="hi", raw=True, stream=False)[1]["response"] == REPLY
    reply = server.post("/v1/completions", prompt="hi", max_tokens=100)[1]
    assert reply["choices"][0]["text"] == REPLY


def test_stop_strings_end_what_is_said_and_not_thoughts(
    server: Server, script: Script, template: ThinkingTemplate
) -> None:
    script.text = "<think>one END two</think>three END four"
    body = dict(messages=USER, stop="END")
    _, reply = server.post("/v1/chat/completions", **body)
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("one END two", "three ")
    assert reply["usage"]["completion_tokens"] == len("<think>one END two</think>three END")
    lines = server.lines("/v1/chat/completions", **body)
    assert "".join(line["choices"][0]["delta"].get("content", "") for line in lines) == "three "


@pytest.mark.parametrize("streaming", [False, True])
def test_every_token_is_scored_thoughts_and_tags_too(
    server: Server, template: ThinkingTemplate, streaming: bool
) -> None:
    body = dict(messages=USER, logprobs=True)
    if streaming:
        choices = [line["choices"][0] for line in server.lines("/v1/chat/completions", **body)]
    else:
        choices = server.post("/v1/chat/completions", **body)[1]["choices"]
    scores = [score for choice in choices for score in (choice["logprobs"] or {"content": []})["content"]]
    assert "".join(score["token"] for score in scores) == REPLY


@pytest.mark.parametrize(
    ("path", "asked", "options"),
    [
        ("/api/chat", {}, {}),
        ("/api/chat", {"think": ""}, {}),
        ("/api/chat", {"think": True}, {"enable_thinking": True, "thinking": True}),
        ("/api/chat", {"think": False}, {"enable_thinking": False, "thinking": False}),
        (
            "/api/chat",
            {"think": "high"},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
        ),
        ("/api/generate", {"think": False}, {"enable_thinking": False, "thinking": False}),
        ("/v1/chat/completions", {}, {}),
        (
            "/v1/chat/completions",
            {"reasoning_effort": "none"},
            {"enable_thinking": False, "thinking": False},
        ),
        (
            "/v1/chat/completions",
            {"reasoning_effort": "low"},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"},
        ),
    ],
)
def test_wish_to_think_reaches_the_template(
    server: Server, template: ThinkingTemplate, path: str, asked: dict[str, Any], options: dict[str, Any]
) -> None:
    body = {"prompt": "hi"} if path == "/api/generate" else {"messages": USER}
    assert server.post(path, stream=False, **body, **asked)[0] == 200
    assert template.seen[1] == options


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("/api/chat", {"think": "low"}, "think"),
        ("/v1/chat/completions", {"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
def test_model_that_cannot_think_says_so(
    server: Server, path: str, asked: dict[str, Any], field: str
) -> None:
    status, reply = server.post(path, messages=USER, **asked)
    message = reply["error"] if path == "/api/chat" else reply["error"]["message"]
    assert (status, message) == (400, f'"{MODEL}" does not support thinking; leave {field} out')
    assert not server.engine.seen


def test_raw_prompt_with_think_is_refused(server: Server, template: ThinkingTemplate) -> None:
    status, reply = server.post("/api/generate", prompt="hi", raw=True, think=True)
    assert (status, "think" in reply["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/chat", "thinking"),
        ("/v1/chat/completions", "reasoning_content"),
        ("/v1/chat/completions", "reasoning"),
    ],
)
def test_thoughts_that_come_back_reach_the_template(
    server: Server, template: ThinkingTemplate, path: str, field: str
) -> None:
    earlier = {"role": "assistant", "content": "Hello", field: "hm"}
    assert server.post(path, messages=[*USER, earlier, *USER], stream=False)[0] == 200
    message = template.seen[0][1]
    assert [part.text for part in message.parts] == ["hm", "Hello"]
    assert message.text == "Hello"
