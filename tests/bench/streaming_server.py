"""A server that streams answers in three dialects, and can be slow, stop early, fail or talk nonsense.

A word is a token, a long one (more than `longest` letters) two; every prompt has `overhead` tokens more.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IDENTITIES = {
    "corral": {
        "/health/ready": {
            "status": "ok",
            "models": [
                {"name": "tiny", "num_blocks": 100, "block_size": 16, "blocks_used": 4, "tokens_held": 48}
            ],
        },
    },
    "llama-server": {"/props": {"default_generation_settings": {}, "build_info": "b1"}},
    "ollama": {"/api/version": {"version": "0.12"}},
    "vllm": {"/version": {"version": "0.30"}},
    "other": {},
}


class StreamingServer(ThreadingHTTPServer):
    """Set the attributes to make it odd; `asked` are (path, body) of the requests for text."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, identity="corral", port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.pages = dict(IDENTITIES[identity])
        self.pages["/v1/models"] = {"data": [{"id": "tiny"}]}
        self.routes = {"/v1/completions", "/v1/chat/completions", "/api/generate"}
        self.asked = []
        self.overhead, self.longest = 1, 99
        self.first = self.pause = 0.0  # seconds before the first token, and between others
        self.stop_after = 10**9  # tokens
        self.counts = True  # whether usage is told
        self.strict = False  # refuses fields that the API does not have
        self.refuse = None  # (status, body) for requests for text
        self.misbehave = None  # a function of the handler, in place of an answer
        self.misbehave_after = 0  # requests before it does
        self.break_after = None  # tokens after which the connection is cut
        self.error_after = None  # tokens after which the stream tells an error
        self.loading = 0  # requests that are answered 503 before the first that is not
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients hang up


class _Handler(BaseHTTPRequestHandler):
    server: StreamingServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        page = self.server.pages.get(self.path)
        if isinstance(page, str):
            self._whole(200, page.encode())
        else:
            self._whole(404 if page is None else 200, json.dumps(page or {"error": "no such page"}).encode())

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        if server.loading > 0:
            server.loading -= 1
            return self._whole(503, b'{"error": "loading"}')
        if server.misbehave and len(server.asked) > server.misbehave_after:
            return server.misbehave(self)
        if self.path not in server.routes:
            return self._whole(404, b'{"error": "no such route"}')
        if server.strict and "ignore_eos" in body:
            return self._whole(400, b'{"error": {"message": "ignore_eos: unknown field"}}')
        if body.get("keep_alive") == 0:
            return self._whole(200, b'{"done": true, "done_reason": "unload"}')
        if server.refuse:
            return self._whole(*server.refuse)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(body)

    def _stream(self, body):
        server = self.server
        text = body.get("prompt") or body["messages"][0]["content"]
        prompt = server.overhead + sum(2 if len(word) > server.longest else 1 for word in text.split())
        asked = body.get("max_tokens") or body["options"]["num_predict"]
        tokens = min(asked, server.stop_after)
        dialect = _DIALECTS[self.path]
        self._chunk(dialect.begin())
        time.sleep(server.first)
        for token in range(tokens):
            if token == server.break_after:
                return self.wfile.write(b"ff\r\n")  # and no more: the connection closes
            if token == server.error_after:
                return self._chunk(dialect.error("out of memory")) or self._chunk(b"", last=True)
            if token:
                time.sleep(server.pause)
            self._chunk(dialect.piece(" w"))
        usage = (prompt, tokens) if server.counts else None
        self._chunk(dialect.end("length" if tokens == asked else "stop", usage))
        self._chunk(b"", last=True)

    def _chunk(self, data, last=False):
        if data or last:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    def _whole(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class _Completions:
    def begin(self):
        return b""

    def choice(self, text, finish=None):
        return {"text": text, "finish_reason": finish}

    def piece(self, text):
        return _event({"choices": [self.choice(text)]})

    def error(self, message):
        return _event({"error": {"message": message}})

    def end(self, reason, usage):
        counted = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
        end = _event({"choices": [self.choice("", reason)]}) + _event({"choices": [], **counted})
        return end + b"data: [DONE]\n\n"


class _Chat(_Completions):
    def begin(self):
        return _event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})

    def choice(self, text, finish=None):
        return {"delta": {"content": text} if text else {}, "finish_reason": finish}


class _Ollama:
    def begin(self):
        return b""

    def piece(self, text):
        return json.dumps({"response": text, "done": False}).encode() + b"\n"

    def error(self, message):
        return json.dumps({"error": message}).encode() + b"\n"

    def end(self, reason, usage):
        counted = {"prompt_eval_count": usage[0], "eval_count": usage[1]} if usage else {}
        return json.dumps({"response": "", "done": True, "done_reason": reason, **counted}).encode() + b"\n"


_DIALECTS = {"/v1/completions": _Completions(), "/v1/chat/completions": _Chat(), "/api/generate": _Ollama()}
