"""A client of the Ollama API, with nothing but the standard library: a command's imports must be quick."""

import contextlib
import http.client
import json
import socket
from collections.abc import Generator, Mapping
from typing import Any

from corral.cli.exits import ApiError, NoServer
from corral.config import Settings, host_to_call, http_address

CONNECT = 5.0  # seconds; answers may take as long as a model takes to load
LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")

Json = dict[str, Any]  # an object of the Ollama API


class Client:
    """A client of one server. Each call opens a connection of its own."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host_to_call(host), port

    @classmethod
    def of(cls, settings: Settings) -> "Client":
        """A client of the server that the settings name."""
        return cls(settings.host, settings.port)

    @property
    def address(self) -> str:
        """The server's address, `http://host:port`."""
        return http_address(self.host, self.port)

    def alive(self) -> bool:
        """Whether an Ollama or corral server answers at the address."""
        try:
            with contextlib.closing(self._send("HEAD", "/", None, timeout=CONNECT)) as connection:
                return connection.getresponse().status == 200
        except (NoServer, OSError, http.client.HTTPException):
            return False

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Send one request and return its JSON answer, {} if that is empty. Raises NoServer and ApiError."""
        with contextlib.closing(self._send(method, path, body)) as connection, self._lost_connection():
            data = _checked(connection.getresponse()).read()
        answer = _parse(data) if data else {}
        if "error" in answer:
            raise ApiError(500, str(answer["error"]))
        return answer

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Send one request and yield the objects of its answer. Closing the generator cancels the request."""
        with contextlib.closing(self._send("POST", path, body)) as connection, self._lost_connection():
            response = _checked(connection.getresponse())
            while line := response.readline():
                answer = _parse(line)
                if "error" in answer:
                    raise ApiError(500, str(answer["error"]))
                yield answer

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None = None
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT)
        try:
            connection.connect()
        except OSError:
            raise NoServer(self.address) from None
        connection.sock.settimeout(timeout)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        with self._lost_connection():
            connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection

    @contextlib.contextmanager
    def _lost_connection(self) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(
                502, f"the connection to {self.address} was lost: {error or type(error).__name__}"
            ) from None


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status < 400:
        return response
    text = response.read(1 << 20).decode("utf-8", "replace")
    try:
        message = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError):
        message = text.strip() or response.reason
    raise ApiError(response.status, str(message))


def _parse(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(502, f"the server's answer is not JSON: {data[:100]!r}")
    return value
