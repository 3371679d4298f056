"""Ollama's API, spoken by the real client and by hand."""

import base64
from collections.abc import Iterator

import ollama
import pytest
from live_server import MODEL, Server

from fake_engine import BOS, EOS, TURN, Script

STATISTICS = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(server.url, **server.transport)
    yield client
    client._client.close()


def test_client_chat_returns_the_reply_and_true_statistics(server: Server, client: ollama.Client) -> None:
    reply = client.chat(MODEL, [{"role": "user", "content": "hi"}])
    assert reply.message.content == "Hello world"
    assert (reply.message.role, reply.done_reason, reply.model) == ("assistant", "stop", MODEL)
    prompt = server.engine.seen[0][0]
    assert reply.prompt_eval_count == len(prompt)
    assert reply.eval_count == len("Hello world") + 1  # with the end-of-sequence token
    assert (reply.prompt_eval_duration, reply.eval_duration) == (2_000_000, 3_000_000)
    assert reply.total_duration > reply.load_duration > 0


def test_client_chat_stream_equals_the_whole(client: ollama.Client) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    chunks = list(client.chat(MODEL, messages, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == client.chat(MODEL, messages).message.content
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.created_at.endswith("Z") for chunk in chunks)
    assert all(getattr(chunks[-1], name) is not None for name in STATISTICS)


def test_client_generate_stream_and_whole_agree(client: ollama.Client) -> None:
    chunks = list(client.generate(MODEL, "hi", stream=True))
    whole = client.generate(MODEL, "hi")
    assert "".join(chunk.response for chunk in chunks) == whole.response == "Hello world"
    assert chunks[-1].context == whole.context


def test_chat_prompt_goes_through_the_template(server: Server) -> None:
    server.post("/api/chat", messages=[{"role": "USER", "content": "a<turn>b"}], stream=False)
    prompt = server.engine.seen[0][0]
    assert prompt == [BOS, TURN, *b"user:a<turn>b\n", TURN, *b"assistant:"]


def test_generate_system_overrides_and_context_comes_first(server: Server) -> None:
    _, first = server.post("/api/generate", prompt="one", stream=False)
    server.post("/api/generate", prompt="two", system="sys", context=first["context"], stream=False)
    prompt = server.engine.seen[1][0]
    assert first["context"][-1] == EOS
    assert prompt == [*first["context"], TURN, *b"system:sys\n", TURN, *b"user:two\n", TURN, *b"assistant:"]


def test_raw_prompt_is_not_templated_and_has_no_context(server: Server) -> None:
    _, reply = server.post("/api/generate", prompt="x<turn>", raw=True, stream=False)
    assert server.engine.seen[0][0] == [BOS, ord("x"), TURN]
    assert "context" not in reply


def test_empty_prompt_loads_and_keep_alive_zero_unloads(server: Server, client: ollama.Client) -> None:
    assert client.generate(MODEL, "").done_reason == "load"
    assert server.pool.models
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    assert not server.pool.models
    chat = server.post("/api/chat", messages=[])[1]
    assert (chat["done_reason"], chat["message"]) == ("load", {"role": "assistant", "content": ""})
    assert server.post("/api/chat", messages=[], keep_alive="0s")[1]["done_reason"] == "unload"
    assert not server.engine.seen


@pytest.mark.parametrize(
    ("given", "seconds"), [(30, 30), (0.5, 0.5), ("1h30m", 5400), ("-1s", -1), (-1, -1), (None, None)]
)
def test_keep_alive_reaches_the_pool(server: Server, given: object, seconds: object) -> None:
    assert server.post("/api/generate", prompt="x", keep_alive=given, stream=False)[0] == 200
    assert server.pool.keep_alives == [seconds]


@pytest.mark.parametrize("given", ["300", "soon", "", "5 minutes"])
def test_keep_alive_of_another_form_is_refused(steady: Server, given: str) -> None:
    status, reply = steady.post("/api/generate", prompt="x", keep_alive=given)
    assert (status, "keep_alive" in reply["error"]) == (400, True)


def test_options_become_sampling_parameters(server: Server, script: Script) -> None:
    server.post("/api/generate", prompt="x", stream=False)
    defaults = server.engine.seen[0][1]
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.max_tokens) == (0.8, 40, 0.9, None)
    assert (defaults.repetition_penalty, defaults.penalty_window, defaults.seed) == (1.0, 64, None)
    options = dict(
        temperature=0,
        top_k=-1,
        top_p=0.5,
        min_p=0.1,
        seed=7,
        num_predict=9,
        num_ctx=100,
        repeat_penalty=1.2,
        repeat_last_n=-1,
        stop=["#"],
        mirostat=1,
        tfs_z=1.0,
        num_gpu=0,
        use_mmap=True,
        low_vram=False,
        unheard_of="x",
    )
    script.text = "Hello #1"
    _, reply = server.post("/api/generate", prompt="x", options=options, stream=False)
    assert reply["response"] == "Hello "
    params = server.engine.seen[1][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.seed) == (0, 0, 0.5, 0.1, 7)
    assert (params.max_tokens, params.context) == (9, 100)
    assert (params.repetition_penalty, params.penalty_window) == (1.2, -1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"top_k": [1]}, 'option "top_k" must be of type integer'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"top_p": 2}, "top_p"),
        ({"repeat_penalty": -1}, "repeat_penalty"),
        ({"seed": 1e30}, "seed"),
        ({"temperature": 1e300}, "temperature"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"num_ctx": -5}, "num_ctx"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
    ],
)
def test_bad_option_is_named(steady: Server, options: dict[str, object], named: str) -> None:
    status, reply = steady.post("/api/generate", prompt="x", options=options)
    assert (status, set(reply)) == (400, {"error"})
    assert named in reply["error"]


def test_num_predict_ends_with_length(client: ollama.Client) -> None:
    reply = client.generate(MODEL, "x", options={"num_predict": 5})
    assert (reply.response, reply.done_reason, reply.eval_count) == ("Hello", "length", 5)


@pytest.mark.parametrize("batch", [1, 2, 3, 50])
def test_stop_string_across_chunks_ends_the_reply_and_the_sequence(
    server: Server, script: Script, batch: int
) -> None:
    script.batch = batch
    chunks = server.lines("/api/generate", prompt="x", options={"stop": ["o w"]})
    assert "".join(chunk["response"] for chunk in chunks) == "Hell"
    assert chunks[-1]["done_reason"] == "stop"
    assert chunks[-1]["eval_count"] == len("Hello w")
    assert chunks[-1]["prompt_eval_count"] == len(server.engine.seen[0][0])
    server.wait_for(server.idle)
    assert server.engine.cancelled == (batch < 50)


def test_characters_split_over_tokens_arrive_whole(server: Server, script: Script) -> None:
    script.text = "né 日本 🎉!"
    chunks = server.lines("/api/generate", prompt="x")
    assert "".join(chunk["response"] for chunk in chunks) == script.text
    assert not any("�" in chunk["response"] for chunk in chunks)


def test_tokens_of_one_wake_up_are_one_chunk(server: Server, script: Script) -> None:
    script.batch = 100
    assert len(server.lines("/api/generate", prompt="x")) == 2


def test_logprobs_have_bytes_and_alternatives(server: Server, client: ollama.Client) -> None:
    reply = client.generate(MODEL, "x", logprobs=True, top_logprobs=2)
    assert "".join(item.token for item in reply.logprobs) == reply.response
    assert [other.token for other in reply.logprobs[0].top_logprobs] == ["H", "I"]
    _, plain = server.post(
        "/api/chat", messages=[{"role": "user", "content": "x"}], logprobs=True, stream=False
    )
    assert plain["logprobs"][0] == {"token": "H", "logprob": -0.5, "bytes": [72]}


def test_long_chat_drops_the_oldest_messages_and_says_so(server: Server) -> None:
    messages = [{"role": "system", "content": "S"}]
    messages += [{"role": "user", "content": f"{i} " + "x" * 28} for i in range(6)]
    _, reply = server.post("/api/chat", messages=messages, stream=False)
    prompt = bytes(token for token in server.engine.seen[0][0] if token < 256).decode()
    assert prompt.startswith("system:S\nuser:4 ")
    assert "user:5 " in prompt
    assert len(server.engine.seen[0][0]) < 128
    assert reply["prompt_truncated"] > 100
    assert reply["prompt_eval_count"] == len(server.engine.seen[0][0])


def test_long_chat_does_not_begin_with_a_reply(server: Server) -> None:
    roles = ["user", "assistant"] * 4 + ["user"]
    messages = [{"role": role, "content": f"{i} " + "x" * 20} for i, role in enumerate(roles)]
    server.post("/api/chat", messages=messages, stream=False)
    prompt = bytes(token for token in server.engine.seen[0][0] if token < 256).decode()
    assert prompt.startswith("user:6 ")


def test_one_long_message_loses_its_middle(server: Server) -> None:
    _, reply = server.post("/api/generate", prompt="a" * 300 + "end", options={"num_keep": 4}, stream=False)
    prompt = server.engine.seen[0][0]
    assert len(prompt) == 128 - 62
    assert prompt[:2] == [BOS, TURN]
    assert prompt[-15:] == [*b"end\n", TURN, *b"assistant:"]
    assert reply["prompt_truncated"] == 300 + 3 + len("user:\n") + 3 + len("assistant:") - len(prompt)


@pytest.mark.parametrize("how", [{"truncate": False}, {"shift": False}])
def test_long_prompt_is_refused_when_cutting_is_off(server: Server, how: dict[str, bool]) -> None:
    status, reply = server.post("/api/generate", prompt="a" * 300, **how)
    assert status == 400
    assert "128" in reply["error"]


def test_huge_prompt_is_cut_before_it_is_tokenised(server: Server) -> None:
    status, reply = server.post("/api/generate", prompt="a" * 2_000_000, stream=False)
    assert (status, reply["prompt_truncated"] > 1000) == (200, True)


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/api/chat", {"tools": [{"type": "function"}]}, "does not support tools"),
        ("/api/chat", {"think": True}, "does not support thinking"),
        ("/api/chat", {"think": "extreme"}, "think"),
        ("/api/chat", {"format": "json"}, "format"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "x", "images": [base64.b64encode(b"x").decode()]}]},
            "images",
        ),
        ("/api/chat", {"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ("/api/chat", {"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ("/api/chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/api/chat", {"messages": {}}, "messages"),
        ("/api/chat", {"top_logprobs": 21}, "top_logprobs"),
        ("/api/generate", {"suffix": "x"}, "does not support insert"),
        ("/api/generate", {"template": "x"}, "template"),
        ("/api/generate", {"raw": True, "system": "x"}, "raw mode"),
        ("/api/generate", {"images": ["eA=="]}, "images"),
        ("/api/generate", {"prompt": 5}, "prompt"),
        ("/api/generate", {"context": [1, 99999]}, "99999"),
        ("/api/generate", {"stream": "yes"}, "stream"),
        ("/api/generate", {"options": []}, "options"),
        ("/api/generate", {"model": ""}, "model"),
        ("/api/generate", {"model": "../../etc/passwd"}, "name"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    steady: Server, path: str, fields: dict[str, object], named: str
) -> None:
    body = {"prompt": "x"} if path.endswith("generate") else {"messages": [{"role": "user", "content": "x"}]}
    status, reply = steady.post(path, **(body | fields))
    assert (status, set(reply)) == (400, {"error"})
    assert named in reply["error"]
    assert not steady.engine.seen


def test_missing_model_is_404_with_a_suggestion(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"model 'tinny:latest' not found.*tiny:latest") as error:
        client.chat("tinny", [{"role": "user", "content": "x"}])
    assert error.value.status_code == 404


def test_unknown_and_null_fields_are_ignored(server: Server) -> None:
    status, _ = server.post(
        "/api/chat",
        messages=[{"role": "user", "content": "x", "images": [], "tool_calls": None, "future": 1}],
        stream=False,
        tools=[],
        format="",
        think=False,
        options=None,
        future={"deep": [1]},
    )
    assert status == 200


def test_error_in_mid_stream_is_the_last_line(server: Server, script: Script, client: ollama.Client) -> None:
    script.fail_after, script.failure = 3, RuntimeError("secret detail")
    lines = server.lines("/api/generate", prompt="x")
    assert "".join(line.get("response", "") for line in lines) == "Hel"
    assert lines[-1] == {"error": "internal server error"}
    with pytest.raises(ollama.ResponseError):
        list(client.generate(MODEL, "x", stream=True))


def test_error_before_the_first_token_has_its_own_status(server: Server, script: Script) -> None:
    from corral.errors import EngineFailed, Overloaded

    script.failure = Overloaded("server busy")
    status, headers, body = server.raw("POST", "/api/generate", {"model": MODEL, "prompt": "x"})
    assert (status, headers["retry-after"], body) == (503, "1", b'{"error":"server busy"}')
    script.failure = EngineFailed("the engine died")
    assert server.post("/api/generate", prompt="x", stream=False) == (500, {"error": "the engine died"})
    script.failure = None
    assert server.post("/api/generate", prompt="x", stream=False)[0] == 200
