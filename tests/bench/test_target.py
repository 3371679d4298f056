import asyncio
import time

import pytest

from corral.bench.address import parse_address
from corral.bench.dialects import DIALECTS, Ask
from corral.bench.prompts import calibrate
from corral.bench.target import ask, detect
from corral.errors import UserError


def found(server, model="tiny", api="auto", limit=20.0):
    return asyncio.run(detect(parse_address(server.address), model, api, limit))


@pytest.mark.parametrize(
    ("identity", "kind", "dialect", "version"),
    [
        ("corral", "corral", "completions", ""),
        ("llama-server", "llama-server", "completions", "b1"),
        ("ollama", "ollama", "ollama", "0.12"),
        ("vllm", "vllm", "completions", "0.30"),
        ("other", "other", "completions", ""),
    ],
)
def test_a_server_is_known_by_what_it_answers(server, identity, kind, dialect, version) -> None:
    target = found(server(identity))
    assert (target.kind.name, target.dialect.name, target.version) == (kind, dialect, version)


def test_a_server_without_completions_is_driven_through_chat(server) -> None:
    other = server("other")
    other.routes.remove("/v1/completions")
    assert found(other).dialect.name == "chat"


def test_fields_that_a_strict_server_refuses_are_left_out(server) -> None:
    other = server("other")
    other.strict = True
    target = found(other)
    assert target.dialect.name == "completions" and not target.exact
    assert "ignore_eos" not in other.asked[-1][1]


def test_a_loading_server_is_asked_again(server) -> None:
    loading = server("llama-server")
    loading.loading = 3
    assert found(loading).kind.name == "llama-server"
    assert len(loading.asked) == 4


def test_the_only_model_is_taken_and_several_are_listed(server) -> None:
    one = server()
    assert found(one, model="").model == "tiny"
    one.pages["/v1/models"] = {"data": [{"id": "tiny"}, {"id": "big"}]}
    with pytest.raises(UserError, match=r"--model NAME; models of .*: tiny, big"):
        found(one, model="")


def test_no_server_is_told_with_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"no server answers at 127\.0\.0\.1:1 .*Connection refused.*Start it"
    ):
        asyncio.run(detect(parse_address("127.0.0.1:1"), "tiny"))


def test_a_model_that_is_refused_is_told_in_the_servers_words(server) -> None:
    refusing = server()
    refusing.refuse = (404, b'{"error": "model \'tiny\' not found"}')
    with pytest.raises(UserError, match=r"the server answered 404: .*model 'tiny' not found"):
        found(refusing)


@pytest.mark.parametrize("dialect", ["completions", "chat", "ollama"])
def test_an_answer_is_stamped_a_token_at_a_time_and_counted_by_the_server(server, dialect) -> None:
    slow = server()
    slow.first, slow.pause = 0.05, 0.02
    target = found(slow, api=dialect)
    began = time.perf_counter()
    reply = asyncio.run(ask(target, Ask("one two three", 5)))
    assert not reply.error
    assert (reply.prompt_tokens, reply.tokens, len(reply.arrivals), reply.finish) == (4, 5, 5, "length")
    assert began <= reply.began and reply.first >= 0.05
    assert all(gap >= 0.005 for gap in reply.gaps)  # they were not read together
    assert reply.ended >= reply.arrivals[-1]


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_an_early_end_is_counted_honestly(server, dialect) -> None:
    early = server()
    early.stop_after = 3
    reply = asyncio.run(ask(found(early, api=dialect), Ask("one", 8)))
    assert (reply.error, reply.tokens, reply.asked, reply.finish) == ("", 3, 8, "stop")


def test_a_server_that_does_not_count_sends_a_piece_a_token(server) -> None:
    silent = server("other")
    silent.counts = False
    reply = asyncio.run(ask(found(silent), Ask("one", 6)))
    assert (reply.tokens, reply.prompt_tokens, reply.error) == (6, 0, "")


def raw(data):
    def write(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return write


def said(data):
    return raw(b"HTTP/1.1 200 OK\r\n\r\n" + data)


@pytest.mark.parametrize(
    ("oddity", "words"),
    [
        ({"refuse": (500, b"sorry\r\n\x1b[31m")}, "answered 500: sorry"),
        ({"break_after": 2}, "broke off in the middle"),
        ({"error_after": 2}, "broke off: out of memory"),
        ({"stop_after": 0}, "no text"),
        ({"misbehave": raw(b"")}, "closed the connection without an answer"),
        ({"misbehave": raw(b"220 mail ready\r\n")}, "does not answer in HTTP"),
        ({"misbehave": said(b"data: {broken\n\n")}, "not an event of this API"),
        ({"misbehave": said(b'data: {"choices": 7}\n\n')}, "not an event of this API"),
        ({"misbehave": said(b'data: {"choices": [{"text": "a"}]}\n\n')}, "without an end"),
        ({"misbehave": said(b"<html>hello</html>\n")}, "no text"),
    ],
)
def test_an_odd_answer_is_a_failure_with_a_clear_reason(server, oddity, words) -> None:
    odd = server()
    target = found(odd)
    for name, value in oddity.items():
        setattr(odd, name, value)
    reply = asyncio.run(ask(target, Ask("one", 8)))
    assert words in reply.error and "\x1b" not in reply.error


def test_a_server_that_hangs_is_given_up(server) -> None:
    hanging = server()
    target = found(hanging, limit=0.3)
    hanging.first = 5
    assert "did not finish its answer in 0 s" in asyncio.run(ask(target, Ask("one", 8))).error


@pytest.mark.parametrize("overhead", [0, 1, 37])
def test_prompts_have_the_length_asked_for_in_the_servers_tokens(server, overhead) -> None:
    counting = server()
    counting.overhead, counting.longest = overhead, 6
    target = found(counting)
    prompts = asyncio.run(calibrate(target))
    assert prompts.exact and prompts.overhead == overhead and "machine" not in prompts.words
    for tokens in (64, 512, 2000):
        reply = asyncio.run(ask(target, Ask(prompts.text(tokens, f"seed {tokens}"), 1)))
        assert reply.prompt_tokens == tokens
    text = prompts.continued(200, "prefix", 216, "tail")
    assert asyncio.run(ask(target, Ask(text, 1))).prompt_tokens == 216
    assert text.startswith(prompts.text(200, "prefix"))


def test_prompts_share_no_beginning(server) -> None:
    prompts = asyncio.run(calibrate(found(server())))
    beginnings = {tuple(prompts.text(512, f"seed {user}").split()[:3]) for user in range(200)}
    assert len(beginnings) > 195


def test_a_server_that_does_not_count_leaves_lengths_unproven(server) -> None:
    silent = server("other")
    silent.counts = False
    assert not asyncio.run(calibrate(found(silent))).exact


def test_llama_server_is_told_not_to_reuse_prompts_unless_that_is_measured(server) -> None:
    fake = server("llama-server")
    target = found(fake)
    asyncio.run(ask(target, Ask("one", 8)))
    asyncio.run(ask(target, Ask("one", 8, reuse_prefix=True)))
    (_, plain), (_, reuse) = fake.asked[-2:]
    assert plain["cache_prompt"] is False and "cache_prompt" not in reuse
    assert plain["n_predict"] == 8 and plain["ignore_eos"] is True and plain["temperature"] == 0
