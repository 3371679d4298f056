"""A server that speaks just enough of Ollama's API, and remembers what it was asked."""

import contextlib
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROW = {
    "name": "tiny:latest",
    "model": "tiny:latest",
    "modified_at": "2024-01-02T03:04:05+00:00",
    "size": 98_362_432,
    "digest": "0123456789abcdef" * 4,
    "details": {
        "format": "gguf",
        "family": "llama",
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    },
}
SHOWN = {
    "details": ROW["details"],
    "model_info": {
        "general.architecture": "llama",
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
    },
    "capabilities": ["completion"],
    "license": "Free as in beer",
    "template": "{{ prompt }}",
    "parameters": 'stop                           "<end>"',
    "modelfile": "FROM /tiny.gguf",
    "tensors": [{"name": "token_embd.weight", "type": "Q4_1", "shape": [576, 49152]}],
}
DONE = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_500_000_000,
    "load_duration": 12_300_000,
    "prompt_eval_count": 10,
    "prompt_eval_duration": 100_000_000,
    "eval_count": 3,
    "eval_duration": 1_000_000_000,
}


class FakeServer(ThreadingHTTPServer):
    """`models` are the names it has; `reply` the pieces of every answer; `asked` is (method, path, body)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.reply, self.asked = ["tiny:latest"], ["Hel", "lo ", "wörld"], []
        self.pull_steps = [
            {"status": "pulling manifest"},
            {"status": "pulling 0123456789ab", "digest": "sha256:01", "total": 1000, "completed": 500},
            {"status": "pulling 0123456789ab", "digest": "sha256:01", "total": 1000, "completed": 1000},
            {"status": "verifying sha256 digest"},
            {"status": "success"},
        ]
        self.hang = threading.Event()  # set: a reply stops after its pieces until the client goes away
        self.gone = threading.Event()  # set when it has gone
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def chats(self):
        return [body for _, path, body in self.asked if path == "/api/chat" and body["messages"]]


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.server.asked.append(("GET", self.path, None))
        expires = (datetime.now(UTC) + timedelta(minutes=4, seconds=30)).isoformat()
        answers = {
            "/api/tags": {"models": [ROW]},
            "/api/ps": {"models": [ROW | {"size_vram": 0, "context_length": 4096, "expires_at": expires}]},
            "/api/version": {"version": "0.32.0"},
        }
        self.answer(200, answers[self.path])

    def do_DELETE(self):
        body = self.body()
        if self.known(body):
            self.answer(200, None)

    def do_POST(self):
        body = self.body()
        if self.path == "/api/pull":
            if "nowhere" in body["model"]:
                return self.answer(404, {"error": f"model '{body['model']}' not found, did you mean 'tiny'?"})
            self.server.models.append(body["model"])
            return self.lines(self.server.pull_steps)
        if not self.known(body):
            return None
        if self.path == "/api/show":
            return self.answer(200, SHOWN)
        if self.path == "/api/chat" and body["messages"]:
            pieces = [{"message": {"role": "assistant", "content": piece}} for piece in self.server.reply]
            return self.lines(pieces, last={"message": {"role": "assistant", "content": ""}} | DONE)
        return self.answer(
            200, {"done": True, "done_reason": "unload" if body.get("keep_alive") == 0 else "load"}
        )

    def body(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.command, self.path, body))
        return body

    def known(self, body):
        name = body["model"] if ":" in body["model"] else body["model"] + ":latest"
        if name not in self.server.models and body["model"] not in self.server.models:
            self.answer(404, {"error": f"model '{body['model']}' not found"})
            return False
        return True

    def answer(self, status, value):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def lines(self, values, last=None):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if last and self.server.hang.is_set():
            with contextlib.suppress(ConnectionError):  # it has not read everything
                for value in values:
                    self.chunk(json.dumps(value).encode() + b"\n")
                self.connection.recv(1)  # returns when the client hangs up
            self.server.gone.set()
            self.close_connection = True
            return
        for value in values:
            self.chunk(json.dumps(value).encode() + b"\n")
        if last:
            self.chunk(json.dumps(last).encode() + b"\n")
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
