import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from corral.bench.page import make_page
from corral.bench.plots import Axis, Curve, draw_plot, linear_ticks, log_ticks
from corral.bench.results import Measurement, Results, Server, load_results, merge, save
from corral.bench.tables import digits, ratio_tables, result_tables
from corral.errors import UserError

VOID = {"meta", "br", "hr", "img", "input", "link"}


def measured(server, users, total, first, turn=0, model="tiny"):
    figures = {
        "total_rate": total,
        "user_rate": total / users,
        "first_token_p50": first,
        "inter_token_p99": 0.02,
        "failures": 0,
        "early_stops": 0,
    }
    return Measurement(server, model, "standard", users, turn, figures)


def results(**changes):
    measurements = [
        measured("corral", 1, 100.0, 0.2),
        measured("corral", 1, 120.0, 0.1, 1),
        measured("corral", 1, 90.0, 0.3, 2),
        measured("corral", 20, 400.0, 2.0),
        measured("llama-server", 1, 50.0, 1.0),
        measured("llama-server", 20, 80.0, 10.0),
    ]
    servers = (Server("corral", "corral", "1", "corral serve"), Server("llama-server", "llama-server"))
    base = Results(
        made="2026-01-02 03:04:05",
        corral="1",
        command="corral bench compare http://127.0.0.1:1",
        seed="ab",
        machine={"processor": "Fast <One>", "cores": "2"},
        servers=servers,
        measurements=tuple(measurements),
    )
    return replace(base, **changes)


class Checked(HTMLParser):
    """Fails on tags that do not nest; keeps what they refer to."""

    def __init__(self, page):
        super().__init__()
        self.open, self.references, self.tags = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    page = make_page(results())
    checked = Checked(page)
    assert checked.references == [] and not {"script", "link", "iframe", "img"} & set(checked.tags)
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert checked.tags.count("polyline") == 4 * 2  # four plots, a line a server
    for text in ("Fast &lt;One&gt;", "corral bench compare", "corral serve", "2026-01-02"):
        assert text in page


def test_what_servers_and_users_call_themselves_is_escaped() -> None:
    evil = "<script>alert(1)</script>&\"'"
    given = results(
        measurements=(measured(evil, 1, 5.0, 1.0, model=evil),),
        servers=(Server(evil, evil, evil, evil, (evil,)),),
        machine={evil: evil},
        command=evil,
        problems=(evil,),
    )
    page = make_page(given)
    assert "<script" not in page and "script" not in Checked(page).tags


def test_a_page_of_nothing_and_of_odd_figures_is_made_too() -> None:
    Checked(make_page(Results()))
    zero = measured("corral", 1, 0.0, 0.0)
    failed = Measurement("corral", "tiny", "standard", 5, 0, {"failures": 5.0})
    idle = Measurement("corral", "tiny", "idle", 0, 0, {"idle_cpu": 0.0})
    Checked(make_page(results(measurements=(zero, failed, idle))))


def test_tables_have_medians_over_the_rounds_and_ratios_of_them() -> None:
    (table,) = result_tables(results())
    rows = {(row[0], row[1]): row[2] for row in table.rows}
    assert rows == {
        ("corral", "1"): "100",
        ("llama-server", "1"): "50",
        ("corral", "20"): "400",
        ("llama-server", "20"): "80",
    }
    (ratios,) = ratio_tables(results())
    by_users = {row[1]: dict(zip(ratios.headings, row, strict=True)) for row in ratios.rows}
    assert by_users["1"]["new tokens/s, all"] == "2x" and by_users["20"]["new tokens/s, all"] == "5x"
    assert by_users["1"]["first token p50"] == "5x" and by_users["20"]["inter-token p99"] == "1x"
    assert by_users["1"]["peak memory"] == "-"


def test_a_column_of_failures_is_shown_only_where_something_failed() -> None:
    assert "failed" not in result_tables(results())[0].headings
    bad = Measurement("corral", "tiny", "standard", 1, 0, {"failures": 1.0})
    assert "failed" in result_tables(results(measurements=(bad,)))[0].headings


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5.0, "5"), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_figures_have_three_digits_that_count(value, text) -> None:
    assert digits(value) == text


@pytest.mark.parametrize("most", [0.003, 0.9, 1.0, 4.5, 57.0, 100.0, 433.0, 12345.0])
def test_ticks_reach_the_highest_value_and_are_few(most) -> None:
    ticks = linear_ticks(most)
    assert ticks[0] == 0 and most <= ticks[-1] <= 1.6 * most and 4 <= len(ticks) <= 7


@pytest.mark.parametrize("values", [(1.0,), (0.1, 30.0), (3.0, 4.0), (0.0001, 5000.0)])
def test_log_ticks_enclose_the_values(values) -> None:
    ticks = log_ticks([(1.0, value) for value in values])
    assert ticks[0] <= min(values) and max(values) <= ticks[-1] and 2 <= len(ticks) <= 12


def test_points_are_where_the_axes_say() -> None:
    assert [Axis(0, 20, 50, 450).place(value) for value in (0, 5, 20)] == [50, 150, 450]
    assert Axis(1, 100, 200, 0, log=True).place(10) == 100
    plot = draw_plot("t", [Curve("a", 0, ((20, 10.0), (1, 5.0)))], digits)
    (points,) = re.findall(r'polyline points="([^"]*)"', plot)
    (x1, y1), (x2, y2) = ([float(v) for v in pair.split(",")] for pair in points.split())
    assert x1 < x2 and y1 > y2


def test_results_come_back_from_their_file(tmp_path) -> None:
    path = tmp_path / "r.json"
    save(results(), path)
    assert load_results(path) == results()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a result"),
        ("[1]", "not a result"),
        ('{"measurements": [{"server": 1}]}', "not a result"),
        ('{"format": 9}', "is of format 9"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, text, words) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_results(path)


def test_several_results_are_one_with_all_servers_and_a_word_about_other_machines() -> None:
    other = results(
        command="corral bench two",
        servers=(Server("vllm", "vllm"), Server("corral", "corral", "2")),
        measurements=(measured("vllm", 1, 20.0, 3.0), measured("corral", 1, 500.0, 0.1)),
        machine={"processor": "Slow"},
    )
    both = merge([results(), other])
    assert [(server.name, server.version) for server in both.servers] == [
        ("corral", "2"),
        ("llama-server", ""),
        ("vllm", ""),
    ]
    assert len(both.measurements) == 8
    assert both.problems == ("not all measured on one machine: also Slow",)
    assert both.command.splitlines() == [results().command, "corral bench two"]
    assert "vllm" in make_page(both)
