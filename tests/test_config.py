"""Settings from the environment: defaults, every kind of value, and what is said about a wrong one."""

from math import inf
from pathlib import Path

import pytest

from corral.config import load_settings, parse_duration, parse_host
from corral.errors import UserError


def test_an_empty_environment_gives_the_defaults():
    settings = load_settings({"HOME": "/home/ada"})
    assert (settings.host, settings.port) == ("127.0.0.1", 11434)
    assert settings.models == Path("/home/ada/.corral/models")
    assert (settings.keep_alive, settings.isa) == (300.0, "auto")


def test_variables_are_read_and_trimmed():
    settings = load_settings(
        {
            "HOME": "/home/ada",
            "OLLAMA_HOST": " '0.0.0.0:9000' ",
            "CORRAL_MODELS": "/srv/models",
            "OLLAMA_KEEP_ALIVE": "-1",
            "CORRAL_MEMORY": "1.5G",
            "CORRAL_KV_CACHE": "64M",
            "OLLAMA_MAX_QUEUE": "7",
            "CORRAL_ISA": "avx2",
            "CORRAL_THREADS": "",
        }
    )
    assert (settings.host, settings.port) == ("0.0.0.0", 9000)
    assert settings.models == Path("/srv/models")
    assert settings.keep_alive == -1
    assert (settings.memory_budget, settings.kv_cache) == (3 * 2**29, 64 * 2**20)
    assert (settings.max_queue, settings.isa, settings.threads) == (7, "avx2", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_HOST", "127.0.0.1:99999"),
        ("OLLAMA_HOST", "https://example.org"),
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("CORRAL_MEMORY", "much"),
        ("OLLAMA_MAX_QUEUE", "1.5"),
        ("OLLAMA_MAX_QUEUE", "0"),
        ("OLLAMA_MAX_QUEUE", "-1"),
        ("OLLAMA_MAX_LOADED_MODELS", "-2"),
        ("OLLAMA_CONTEXT_LENGTH", "-1"),
        ("CORRAL_THREADS", "-1"),
        ("CORRAL_BATCH_TOKENS", "0"),
        ("CORRAL_MAX_SEQUENCES", "9" * 5000),
        ("CORRAL_ISA", "mmx"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name, value):
    with pytest.raises(UserError, match=name):
        load_settings({"HOME": "/", name: value})


def test_a_timeout_of_nothing_is_none_and_a_drain_of_less_is_short():
    names = ("OLLAMA_LOAD_TIMEOUT", "CORRAL_STEP_TIMEOUT", "CORRAL_DRAIN_TIMEOUT")
    settings = load_settings({"HOME": "/", **dict.fromkeys(names, "-1s")})
    assert (settings.load_timeout, settings.step_timeout, settings.drain_timeout) == (inf, inf, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:11434", ("127.0.0.1", 11434)),
        ("localhost", ("localhost", 11434)),
        (":9000", ("0.0.0.0", 9000)),
        ("http://10.1.2.3", ("10.1.2.3", 80)),
        ("http://10.1.2.3:8000/", ("10.1.2.3", 8000)),
        ("[::1]:5000", ("::1", 5000)),
        ("", ("127.0.0.1", 11434)),
    ],
)
def test_hosts_are_read_as_ollama_reads_them(text, expected):
    assert parse_host(text) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("-1s", -1), ("0", 0), ("2.5", 2.5), ("1.5h", 5400)],
)
def test_durations_are_go_durations_or_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "1h-30m", "5mm", "--1s", "1e3"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.timeout(20)
def test_endless_duration_is_refused_without_a_search():
    with pytest.raises(ValueError, match="too long") as caught:
        parse_duration("9" * 200_000 + "x")
    assert len(str(caught.value)) < 150
