import json

import pytest
from streaming_server import StreamingServer


@pytest.fixture
def streaming():
    server = StreamingServer("vllm")
    yield server
    server.shutdown()
    server.server_close()


QUICK = ("--users", "1,2", "--size", "32,4", "--no-search")


def test_a_server_is_measured_and_shown(corral, streaming, tmp_path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "r.json"
    done = corral(
        "bench", streaming.address, "--model", "tiny", *QUICK, "--json", str(file), "--html", str(page)
    )
    assert done.returncode == 0, done.stderr
    assert "tiny: standard" in done.stdout and "vllm" in done.stdout
    assert "vllm: standard, 2 users" in done.stderr
    assert [each["users"] for each in json.loads(file.read_text())["measurements"]] == [1, 2]
    assert page.read_text().startswith("<!DOCTYPE html>")
    again = corral("bench", "report", str(file), str(file))
    assert again.returncode == 0 and "tiny: standard" in again.stdout


def test_json_alone_is_printed(corral, streaming) -> None:
    done = corral("bench", streaming.address, *QUICK, "--json")
    assert json.loads(done.stdout)["servers"][0]["name"] == "vllm"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ftp://x",), "not a server's address"),
        (("--users", "0"), "list of numbers"),
        (("--size", "5"), "two numbers"),
        (("--load", "heavy"), "not one of standard"),
        (("--min-rate", "0"), "more than 0"),
        (("http://a", "http://b"), "one argument too many"),
        (("report",), "which results"),
        (("report", "/no/such/file"), "cannot be read"),
        (("compare", "--servers", "apache"), "not one of corral"),
        (("step", "--model", "nobody"), "not found"),
    ],
)
def test_wrong_usage_is_told(corral, arguments, words) -> None:
    done = corral("bench", *arguments)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
