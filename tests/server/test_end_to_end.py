"""The whole way with nothing faked: HTTP, pool, engine process, kernels, over tiny random checkpoints."""

import concurrent.futures
import os
import signal
from collections.abc import Iterator

import pytest
from live_server import LiveServer

import gguf_files
from corral.config import Settings
from corral.pool.pool import Pool
from corral.server.details import model_facts
from corral.store.local import Store
from corral.store.pull import pull


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("models")
    store = Store(folder / "store")
    for name, write in (("llama", gguf_files.tiny_llama), ("gemma", gguf_files.tiny_gemma3)):
        path = folder / f"{name}.gguf"
        write(path)
        list(pull(store, str(path), name=name, inspect=model_facts, local_files=True))
    settings = Settings(models=store.root, threads=1, kv_cache=8 << 20, memory_budget=1 << 30)
    server = LiveServer(settings, Pool(store, settings))
    yield server
    server.stop()


GREEDY = {"temperature": 0, "ignore_eos": True}


def complete(live: LiveServer, model: str = "llama", **fields: object) -> dict[str, object]:
    body = {"model": model, "max_tokens": 12, **GREEDY, **fields}
    status, reply = live.request("POST", "/v1/completions", body)
    assert status == 200, reply
    return reply


@pytest.mark.parametrize("model", ["llama", "gemma"])
def test_stream_equals_whole_in_both_apis(live: LiveServer, model: str) -> None:
    whole = complete(live, model, prompt="hello there")
    lines = live.lines("/v1/completions", model=model, prompt="hello there", max_tokens=12, **GREEDY)
    assert "".join(line["choices"][0]["text"] for line in lines) == whole["choices"][0]["text"]
    options = {"temperature": 0, "num_predict": 12}
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "options": options}
    lines = live.lines("/api/chat", **chat)
    reply = live.request("POST", "/api/chat", chat | {"stream": False})[1]
    assert "".join(line["message"]["content"] for line in lines) == reply["message"]["content"]
    assert reply["eval_count"] <= 12
    assert reply["prompt_eval_count"] == lines[-1]["prompt_eval_count"] > 3
    assert reply["total_duration"] >= reply["eval_duration"]


def test_greedy_reply_is_the_same_alone_in_company_and_from_the_prefix_cache(live: LiveServer) -> None:
    prompts = [[(7 * i + j) % 200 for j in range(20 + i)] for i in range(10)]
    alone = [complete(live, prompt=prompt, logprobs=2)["choices"][0] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        together = list(threads.map(lambda prompt: complete(live, prompt=prompt, logprobs=2), prompts))
    assert [reply["choices"][0] for reply in together] == alone
    assert any(reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in together)


def test_scoring_a_prompt_agrees_with_generating_it(live: LiveServer) -> None:
    prompt = list(range(40, 60))
    fields = {"logprobs": 3, "return_tokens_as_token_ids": True}
    made = complete(live, prompt=prompt, **fields)["choices"][0]["logprobs"]
    ids = [int(token.removeprefix("token_id:")) for token in made["tokens"]]
    scored = complete(live, prompt=prompt + ids, max_tokens=0, echo=True, **fields)["choices"][0]["logprobs"]
    assert scored["tokens"][-len(ids) :] == made["tokens"]
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][-len(ids) :] == made["token_logprobs"]
    assert scored["top_logprobs"][-len(ids) :] == made["top_logprobs"]


def test_n_replies_with_a_seed_can_be_repeated(live: LiveServer) -> None:
    fields = {"temperature": 1, "seed": 5, "n": 4}
    first, again = (complete(live, prompt="once upon", **fields) for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) > 1
    assert first["usage"]["completion_tokens"] == 4 * 12


def test_disconnect_frees_the_engine(live: LiveServer) -> None:
    complete(live, prompt="x")
    engine = live.pool.loaded()[0].engine
    body = b'{"model":"llama","prompt":"x","options":{"num_predict":-1}}'
    connection = live.send(
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    connection.recv(4096)
    connection.close()
    live.wait_for(lambda: live.drain.in_flight == 0)
    live.wait_for(lambda: engine.occupancy.running == engine.occupancy.waiting == 0)


def test_killed_engine_is_an_error_and_then_works_again(live: LiveServer) -> None:
    before = complete(live, prompt="again")["choices"][0]
    os.kill(live.pool.loaded()[0].engine.pid, signal.SIGKILL)
    live.wait_for(
        lambda: live.request("POST", "/v1/completions", {"model": "llama", "prompt": "x"})[0] == 200
    )
    assert complete(live, prompt="again")["choices"][0] == before


def test_unload_ends_the_process_and_show_still_works(live: LiveServer) -> None:
    complete(live, "gemma", prompt="x")
    assert "gemma:latest" in [row["name"] for row in live.request("GET", "/api/ps")[1]["models"]]
    live.request("POST", "/api/generate", {"model": "gemma", "prompt": "", "keep_alive": 0})
    assert "gemma:latest" not in [row["name"] for row in live.request("GET", "/api/ps")[1]["models"]]
    assert live.request("POST", "/api/show", {"model": "gemma"})[1]["details"]["family"] == "gemma3"


def test_damaged_model_is_said_to_be_so_and_can_be_deleted_as_told(live: LiveServer) -> None:
    manifest = live.store.manifests / "registry.ollama.ai" / "library" / "bad" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b'{"layers": []}')
    status, reply = live.request("POST", "/api/show", {"model": "bad"})
    assert status == 500 and "corral rm bad:latest" in reply["error"]
    assert live.request("DELETE", "/api/delete", {"model": "bad"})[0] == 200
    assert not manifest.exists()
    assert live.request("DELETE", "/api/delete", {"model": "bad"})[0] == 404
