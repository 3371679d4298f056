"""OpenAI's API, spoken by the real client and by hand."""

import itertools
import math
from collections.abc import Iterator

import openai
import pytest
from live_server import MODEL, Server

from fake_engine import BOS, TURN, Script

HELLO = "Hello world"
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpxClient(**server.transport)
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0, http_client=http_client
    ) as client:
        yield client


def test_client_chat_returns_the_reply_and_usage(
    server: Server, script: Script, client: openai.OpenAI
) -> None:
    script.cached = 16
    reply = client.chat.completions.create(model=MODEL, messages=CHAT)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (HELLO, "stop")
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage.prompt_tokens == len(server.engine.seen[0][0])
    assert reply.usage.completion_tokens == len(HELLO) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 16
    assert reply.system_fingerprint


def test_client_chat_stream_has_role_deltas_finish_and_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=CHAT, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == HELLO
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], len(HELLO) + 1)
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_client_completion_stream_equals_the_whole(client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt="x", max_tokens=50, stream=True)
    chunks = list(stream)
    whole = client.completions.create(model=MODEL, prompt="x", max_tokens=50)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text == HELLO
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert whole.id != client.completions.create(model=MODEL, prompt="x").id


def test_completion_defaults_to_16_tokens_and_shrinks_to_the_context(server: Server, script: Script) -> None:
    script.text = "x" * 50
    _, reply = server.post("/v1/completions", prompt="x")
    assert (len(reply["choices"][0]["text"]), reply["choices"][0]["finish_reason"]) == (16, "length")
    _, reply = server.post("/v1/completions", prompt="x" * 120)
    assert reply["usage"]["completion_tokens"] == 128 - 121


def test_developer_role_and_text_parts_reach_the_template(server: Server) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b<turn>"}]
    messages = [{"role": "developer", "content": "D"}, {"role": "user", "content": parts, "name": "bob"}]
    assert server.post("/v1/chat/completions", messages=messages)[0] == 200
    prompt = server.engine.seen[0][0]
    assert prompt == [BOS, TURN, *b"system:D\n", TURN, *b"user:ab<turn>\n", TURN, *b"assistant:"]


def test_raw_text_token_ids_and_lists_are_prompts(server: Server, client: openai.OpenAI) -> None:
    client.completions.create(model=MODEL, prompt="a<turn>")
    client.completions.create(model=MODEL, prompt=[5, 6])
    client.completions.create(model=MODEL, prompt="a", extra_body={"add_special_tokens": False})
    assert [prompt for prompt, _ in server.engine.seen] == [[BOS, ord("a"), TURN], [5, 6], [ord("a")]]
    reply = client.completions.create(model=MODEL, prompt=[[5], [6, 7]], n=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.completion_tokens == 4 * (len(HELLO) + 1)
    assert sorted(prompt for prompt, _ in server.engine.seen[3:]) == [[5], [5], [6, 7], [6, 7]]
    reply = client.completions.create(model=MODEL, prompt=["a", "b"], echo=True)
    assert [choice.text for choice in reply.choices] == [f"a{HELLO}", f"b{HELLO}"]


def test_n_replies_differ_by_seed_and_stream_with_their_index(server: Server, script: Script) -> None:
    script.per_seed = True
    body = dict(messages=CHAT, n=3, seed=7)
    _, whole = server.post("/v1/chat/completions", **body)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts == [f"{seed} {HELLO}" for seed in (7, 8, 9)]
    streamed = ["", "", ""]
    finished = []
    for chunk in server.lines("/v1/chat/completions", **body):
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
        finished += [choice["index"]] * (choice["finish_reason"] is not None)
    assert (streamed, sorted(finished)) == (texts, [0, 1, 2])


def test_chat_logprobs_match_the_text(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=CHAT, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert "".join(item.token for item in content) == HELLO
    assert bytes(itertools.chain.from_iterable(item.bytes for item in content)).decode() == HELLO
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5, -2.5]
    stream = client.chat.completions.create(
        model=MODEL, messages=CHAT, logprobs=True, top_logprobs=3, stream=True
    )
    parts = [c.choices[0].logprobs.content for c in stream if c.choices[0].logprobs]
    assert [item for part in parts for item in part] == content


def test_prompt_scoring_echoes_with_logprobs_and_no_reply(server: Server) -> None:
    _, reply = server.post(
        "/v1/completions",
        prompt=[72, 105, 33],
        max_tokens=0,
        echo=True,
        logprobs=20,
        temperature=0,
        return_tokens_as_token_ids=True,
    )
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi!", "length")
    scores = choice["logprobs"]
    assert scores["tokens"] == ["token_id:72", "token_id:105", "token_id:33"]
    assert scores["token_logprobs"] == [None, -0.5, -0.5]
    assert scores["top_logprobs"][0] is None
    assert len(scores["top_logprobs"][1]) == 20
    assert scores["top_logprobs"][1]["token_id:105"] == -0.5
    assert scores["text_offset"] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 0


def test_echo_of_every_child_is_scored_by_the_first(server: Server) -> None:
    _, reply = server.post("/v1/completions", prompt="ab", max_tokens=2, echo=True, logprobs=1, n=2)
    for choice in reply["choices"]:
        assert choice["text"] == "abHe"
        assert choice["logprobs"]["tokens"] == ["<bos>", "a", "b", "H", "e"]
        assert choice["logprobs"]["text_offset"][-2:] == [2, 3]
    assert [scores.prompt_logprobs for scores in server.engine.scored] == [1, None]


def test_completion_logprobs_stream_equals_the_whole(server: Server, script: Script) -> None:
    script.text = "né 日本"
    body = dict(prompt="x", max_tokens=50, logprobs=2)
    _, whole = server.post("/v1/completions", **body)
    merged: dict[str, list[object]] = {}
    for chunk in server.lines("/v1/completions", **body):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            merged.setdefault(name, []).extend(values)
    assert merged == whole["choices"][0]["logprobs"]
    assert merged["text_offset"] == [0, 1, 1, 2, 3, 3, 3, 4, 4, 4]


def test_infinite_logprob_is_still_json(server: Server, script: Script) -> None:
    script.ids = (0, 65)
    _, reply = server.post("/v1/completions", prompt="x", logprobs=1)
    assert reply["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0, -0.5]
    assert math.isfinite(reply["choices"][0]["logprobs"]["token_logprobs"][0])


def test_all_sampling_fields_reach_the_engine(server: Server) -> None:
    fields = dict(
        temperature=0.5,
        top_p=0.6,
        top_k=7,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias={"65": -100, "66": 2.5},
        seed=-3,
        stop=["rl", "b"],
        stop_token_ids=[33],
        ignore_eos=True,
        min_tokens=2,
        max_completion_tokens=10,
    )
    status, reply = server.post("/v1/chat/completions", messages=CHAT, **fields)
    assert (status, reply["choices"][0]["message"]["content"]) == (200, "Hello wo")
    params = server.engine.seen[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.6, 7, 0.05)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, -1, 1.5)
    assert (params.logit_bias, params.seed) == ({65: -100, 66: 2.5}, -3)
    assert (params.stop_token_ids, params.min_tokens, params.max_tokens) == ((33,), 2, 10)
    assert params.penalty_window is None
    server.post("/v1/chat/completions", messages=CHAT)
    params = server.engine.seen[1][1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1, 1, 0, None)


def test_harmless_fields_are_accepted(server: Server) -> None:
    status, _ = server.post(
        "/v1/chat/completions",
        messages=CHAT,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        prompt_cache_key="k",
        safety_identifier="s",
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        modalities=["text"],
        temperature=None,
    )
    assert status == 200


def test_stop_string_hides_itself_and_what_follows(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=CHAT, stop="lo w")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hel", "stop")
    assert reply.usage.completion_tokens == len("Hello w")
    server.wait_for(server.idle)


def test_min_tokens_comes_before_stop_strings(server: Server) -> None:
    _, reply = server.post("/v1/completions", prompt="x", stop="l", min_tokens=5)
    assert reply["choices"][0]["text"] == "Hello wor"


def test_too_long_prompt_names_both_lengths(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"128 tokens.* 151") as error:
        client.completions.create(model=MODEL, prompt="x" * 150)
    assert error.value.code == "context_length_exceeded"
    status, reply = server.post("/v1/completions", prompt="x" * 100, max_tokens=50)
    assert (status, "101" in reply["error"]["message"], "50" in reply["error"]["message"]) == (
        400,
        True,
        True,
    )
    status, reply = server.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "x" * 1_000_000}]
    )
    assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
    assert not server.engine.seen


def test_too_long_prompt_names_its_own_field_and_what_limits_the_context(server: Server) -> None:
    _, reply = server.post("/v1/completions", prompt="x" * 150)
    assert reply["error"]["param"] == "prompt"
    assert "CORRAL_KV_CACHE" not in reply["error"]["message"]
    server.pool.models.clear()
    server.pool.kv_tokens = 32
    _, reply = server.post("/v1/completions", prompt="x" * 50)
    assert (reply["error"]["param"], reply["error"]["code"]) == ("prompt", "context_length_exceeded")
    assert "32 tokens" in reply["error"]["message"] and "CORRAL_KV_CACHE" in reply["error"]["message"]
    _, reply = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x" * 5000}])
    assert reply["error"]["param"] == "messages" and "CORRAL_KV_CACHE" in reply["error"]["message"]
    assert server.request("GET", "/api/ps")[1]["models"][0]["context_length"] == 32


def test_more_sequences_than_the_queue_holds_are_refused_for_good(server: Server) -> None:
    status, reply = server.post("/v1/completions", prompt=["x"] * 128, n=8)
    assert (status, reply["error"]["param"]) == (400, "n")
    assert "1024" in reply["error"]["message"] and "OLLAMA_MAX_QUEUE" in reply["error"]["message"]
    assert server.post("/v1/completions", prompt=["x"] * 128, n=4, max_tokens=1)[0] == 200


def test_missing_model_is_404_with_a_suggestion(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny:latest") as error:
        client.chat.completions.create(model="tinny", messages=CHAT)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing:q4")


def test_models_are_listed_and_found_by_id(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny:latest", "team/other:q4"]
    assert client.models.retrieve("team/other:q4").owned_by == "team"
    assert client.models.retrieve("tiny").id == "tiny:latest"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"surprise": 1}, "Unrecognized request argument supplied: surprise"),
        ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "messages[0].odd"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "image_url",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n must"),
        ({"n": 9}, "n must"),
        ({"n": 1.5}, "'n'"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_bad_chat_field_is_named(steady: Server, fields: dict[str, object], named: str) -> None:
    status, reply = steady.post("/v1/chat/completions", **({"messages": CHAT} | fields))
    assert status == 400
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert named in reply["error"]["message"]
    assert not steady.engine.seen


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[1], 2]}, "prompt"),
        ({"prompt": [300]}, "300"),
        ({"prompt": [-1]}, "-1"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": []}, "Unrecognized request argument supplied: messages"),
    ],
)
def test_bad_completion_field_is_named(steady: Server, fields: dict[str, object], named: str) -> None:
    status, reply = steady.post("/v1/completions", **({"prompt": "x"} | fields))
    assert (status, named in reply["error"]["message"]) == (400, True), reply
    assert not steady.engine.seen


def test_missing_required_field_is_named(server: Server) -> None:
    assert "'model'" in server.request("POST", "/v1/completions", {"prompt": "x"})[1]["error"]["message"]
    assert "'prompt'" in server.request("POST", "/v1/completions", {"model": MODEL})[1]["error"]["message"]


def test_error_in_mid_stream_is_an_event_before_done(
    server: Server, script: Script, client: openai.OpenAI
) -> None:
    script.fail_after, script.failure = 3, RuntimeError("secret detail")
    lines = server.lines("/v1/completions", prompt="x")
    assert lines[-1]["error"]["message"] == "internal server error"
    with pytest.raises(openai.APIError):
        list(client.completions.create(model=MODEL, prompt="x", stream=True))
    _, _, data = server.raw("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "stream": True})
    assert data.endswith(b"data: [DONE]\n\n")


def test_a_failing_child_ends_its_siblings(server: Server, script: Script) -> None:
    script.fail_after, script.failure = 3, RuntimeError("broken")
    status, _ = server.post("/v1/completions", prompt=["a", "b"], n=2)
    assert status == 500
    server.wait_for(server.idle)


@pytest.mark.parametrize("field", ["n", "top_k", "seed", "max_tokens", "min_tokens"])
def test_number_beyond_all_floats_is_refused_like_any_other(server: Server, field: str) -> None:
    body = {"model": MODEL, "prompt": "x", field: 10**400}
    status, reply = server.request("POST", "/v1/completions", body)
    assert (status, reply["error"]["param"]) == (400, field)
    assert len(reply["error"]["message"]) < 200
