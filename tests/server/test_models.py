"""The endpoints about models: what is stored, what is loaded, and how that changes."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import ollama
import pytest
from live_server import EVERY_WAY, MODEL, LiveServer, Server

import gguf_files
from corral.config import Settings
from corral.errors import PullFailed
from corral.server.details import human_count, parameters_text
from corral.store.progress import Progress
from fake_engine import FakePool, FakeStore


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(server.url, **server.transport)
    yield client
    client._client.close()


@pytest.fixture(params=EVERY_WAY)
def real_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server whose model has a real GGUF header."""
    path = gguf_files.tiny_llama(tmp_path / "tiny.gguf")
    params = {"temperature": 0.5, "stop": ["<|a|>", 'say "x"']}
    store = FakeStore("tiny", path=path, params=params, system="be kind", license="MIT")
    server = request.param(Settings(), FakePool(store))
    yield server
    server.stop()


def test_tags_have_all_that_clients_read(server: Server, client: ollama.Client) -> None:
    first = client.list().models[0]
    assert (first.model, first.size, first.digest) == (MODEL, 1234, "ab" * 32)
    assert (first.details.family, first.details.parameter_size) == ("llama", "134.52M")
    assert first.details.quantization_level == "Q4_1"
    raw = server.request("GET", "/api/tags")[1]["models"][0]
    assert raw["name"] == raw["model"] == MODEL
    assert raw["capabilities"] == ["completion"]
    assert datetime.fromisoformat(raw["modified_at"]).utcoffset() == timedelta(hours=1)


def test_ps_lists_what_is_loaded_and_when_it_goes(server: Server, client: ollama.Client) -> None:
    assert client.ps().models == []
    client.generate(MODEL, "x")
    loaded = client.ps().models[0]
    assert (loaded.model, loaded.name, loaded.size, loaded.size_vram) == (MODEL, MODEL, 4321, 0)
    assert loaded.context_length == 128
    assert loaded.expires_at.year > datetime.now().year + 100  # for ever


def test_show_gives_metadata_with_long_arrays_emptied(real_file: Server) -> None:
    status, shown = real_file.request("POST", "/api/show", {"name": "tiny"})
    assert status == 200
    info = shown["model_info"]
    assert info["general.architecture"] == "llama"
    assert info["general.parameter_count"] > 1000
    assert info["llama.context_length"] > 0
    assert info["tokenizer.ggml.tokens"] == []
    assert "tokenizer.chat_template" not in info
    assert set(shown["details"]) >= {"parent_model", "format", "family", "families", "parameter_size"}
    assert shown["capabilities"] == ["completion"]
    assert shown["parameters"].splitlines() == [
        "temperature                    0.5",
        'stop                           "<|a|>"',
        'stop                           "say \\"x\\""',
    ]
    assert shown["template"] and shown["system"] == "be kind" and shown["license"] == "MIT"
    assert {"name", "type", "shape"} == set(shown["tensors"][0])
    verbose = real_file.request("POST", "/api/show", {"model": "tiny", "verbose": True})[1]
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) > 5


def test_show_satisfies_the_real_client(real_file: Server) -> None:
    client = ollama.Client(real_file.url, **real_file.transport)
    shown = client.show("tiny")
    client._client.close()
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelfile.startswith("# Modelfile")


def test_model_parameters_system_and_stop_apply_to_both_apis(real_file: Server) -> None:
    messages = [{"role": "user", "content": "hi"}]
    real_file.engine.script.text = 'Hello say "x"'
    body = {"model": "tiny", "messages": messages, "stream": False}
    ollama_reply = real_file.request("POST", "/api/chat", body)[1]
    openai_reply = real_file.request("POST", "/v1/chat/completions", body)[1]
    (ollama_prompt, ollama_params), (openai_prompt, openai_params) = real_file.engine.seen
    assert ollama_prompt == openai_prompt
    assert b"system:be kind" in bytes(token for token in ollama_prompt if token < 256)
    assert (ollama_params.temperature, openai_params.temperature) == (0.5, 1.0)
    assert ollama_reply["message"]["content"] == openai_reply["choices"][0]["message"]["content"] == "Hello "


def test_delete_unloads_first_and_then_is_404(server: Server, client: ollama.Client) -> None:
    client.generate(MODEL, "x")
    assert client.delete(MODEL).status == "success"
    assert not server.pool.models
    with pytest.raises(ollama.ResponseError) as error:
        client.delete(MODEL)
    assert error.value.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/show"), ("DELETE", "/api/delete"), ("POST", "/api/pull")]
)
def test_model_name_is_required(steady: Server, method: str, path: str) -> None:
    assert steady.request(method, path, {}) == (400, {"error": "model is required"})


STEPS = [
    Progress("pulling manifest"),
    Progress("pulling 0123456789ab", "sha256:01", 100, 0),
    Progress("pulling 0123456789ab", "sha256:01", 100, 100),
    Progress("success"),
]


def test_pull_streams_statuses_in_order(
    server: Server, client: ollama.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pull(store: object, name: str, **_: object) -> Iterator[Progress]:
        asked.append(name)
        yield from STEPS

    monkeypatch.setattr("corral.store.pull.pull", pull)
    steps = list(client.pull("smollm2:135m", stream=True))
    assert [step.status for step in steps] == [step.status for step in STEPS]
    assert (steps[1].total, steps[1].completed, steps[1].digest) == (100, 0, "sha256:01")
    assert client.pull("smollm2:135m").status == "success"
    assert server.request("POST", "/api/pull", {"name": "x", "stream": False})[1] == {"status": "success"}
    assert asked == ["smollm2:135m", "smollm2:135m", "x"]


def test_pull_error_is_a_status_at_first_and_a_line_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(store: object, name: str, **_: object) -> Iterator[Progress]:
        if name == "late":
            yield STEPS[0]
        raise PullFailed("no source could deliver")

    monkeypatch.setattr("corral.store.pull.pull", pull)
    assert server.request("POST", "/api/pull", {"model": "soon"}) == (
        500,
        {"error": "no source could deliver"},
    )
    _, _, data = server.raw("POST", "/api/pull", {"model": "late"})
    assert data.splitlines() == [b'{"status":"pulling manifest"}', b'{"error":"no source could deliver"}']


def test_client_that_leaves_ends_its_pull(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    def pull(store: object, name: str, **_: object) -> Iterator[Progress]:
        try:
            while True:
                yield STEPS[1]
        finally:
            closed.set()

    monkeypatch.setattr("corral.store.pull.pull", pull)
    body = b'{"model":"x"}'
    connection = live.send(b"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n" + body)
    while connection.recv(4096).count(b"\n") < 2:
        pass
    connection.close()
    assert closed.wait(20)
    live.wait_for(live.idle)


def test_counts_and_parameters_read_as_ollama_writes_them() -> None:
    assert [human_count(n) for n in (7_600_000_000, 134_515_008, 1_500, 7)] == [
        "7.6B",
        "134.52M",
        "1.50K",
        "7",
    ]
    assert (
        parameters_text({"num_ctx": 4096, "use_mmap": True}) == f"{'num_ctx':<30} 4096\n{'use_mmap':<30} true"
    )
