import pytest

from corral.bench.address import parse_address
from corral.bench.exchange import MAX_HEAD, MAX_LINE, BadReply, ReplyParser
from corral.errors import UserError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\none\ntw\r\n8;x=y\r\no\nthree\n\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "reply",
    [CHUNKED, HEAD + b"Content-Length: 14\r\n\r\none\ntwo\nthree\n", HEAD + b"\r\none\ntwo\nthree\n"],
    ids=["chunked", "with a length", "until it closes"],
)
def test_a_reply_gives_its_lines_however_it_is_framed_and_cut(reply, size) -> None:
    parser = ReplyParser()
    lines = [line for i in range(0, len(reply), size) for line in parser.feed(reply[i : i + size])]
    assert lines + parser.close() == [b"one", b"two", b"three"]
    assert parser.status == 200


def test_a_last_line_without_an_end_is_given_at_the_close() -> None:
    parser = ReplyParser()
    assert parser.feed(HEAD + b"\r\none\ntwo") == [b"one"]
    assert parser.close() == [b"two"]


def test_an_interim_reply_is_passed_over() -> None:
    parser = ReplyParser()
    assert parser.feed(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 3\r\n\r\nab\n") == [b"ab"]
    assert parser.ended


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 many OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * MAX_HEAD,
        HEAD + b"\r\n" + b"x" * (MAX_LINE + 1),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
    ],
)
def test_what_is_not_http_is_refused(reply) -> None:
    with pytest.raises(BadReply):
        ReplyParser().feed(reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        HEAD + b"Content-Length: 9\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_a_reply_that_is_cut_off_is_told(reply) -> None:
    parser = ReplyParser()
    parser.feed(reply)
    with pytest.raises(BadReply):
        parser.close()


@pytest.mark.parametrize(
    ("text", "host", "port", "base", "tls"),
    [
        ("http://127.0.0.1:11434", "127.0.0.1", 11434, "", False),
        ("localhost:8000/v1/", "localhost", 8000, "", False),
        ("https://example.org/api/v1", "example.org", 443, "/api", True),
        ("http://[::1]:80", "::1", 80, "", False),
    ],
)
def test_addresses_are_understood(text, host, port, base, tls) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.base, address.tls) == (host, port, base, tls)


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://x:99999", "http://x/a\r\nb: c"])
def test_what_is_no_address_is_refused(text) -> None:
    with pytest.raises(UserError, match="not a server's address"):
        parse_address(text)


def test_a_key_is_sent_as_a_bearer_token() -> None:
    head = parse_address("http://h:1/base", "secret").head("POST", "/v1/x", 7).decode()
    assert head.startswith("POST /base/v1/x HTTP/1.1\r\nHost: h:1\r\n")
    assert "Authorization: Bearer secret\r\n" in head and "Content-Length: 7\r\n" in head
