"""A page of results: plots, tables, the machine and the commands, in one file that needs nothing else."""

from collections.abc import Iterable, Sequence
from html import escape

from corral.bench.plots import Curve, draw_plot, swatch
from corral.bench.results import Results, Server, selected
from corral.bench.tables import (
    FIRST,
    GAP99,
    TOTAL,
    USER,
    Column,
    Table,
    digits,
    middle_figures,
    ratio_tables,
    result_tables,
)
from corral.bench.workloads import WORKLOADS

COLOURS = 8
PLOTS: tuple[tuple[Column, bool], ...] = ((TOTAL, False), (USER, False), (FIRST, True), (GAP99, True))

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #d9dce1; --soft: #63676e; --paper: #fff;
  --c0: #0067b1; --c1: #d55e00; --c2: #00875f; --c3: #b3468a; --c4: #8a6d00; --c5: #5a5fd0; --c6: #7a4a2b;
  --c7: #555 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --faint: #3a3e44; --soft: #a3a8b0;
  --paper: #16181b;
  --c0: #57b5f5; --c1: #ff9a52; --c2: #3ed0a0; --c3: #f08cc8; --c4: #e2c044; --c5: #a5a9ff; --c6: #d9a27e;
  --c7: #bbb } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 1rem }
.plots svg { width: 100% } svg text { fill: var(--ink); font-size: 12px } svg .title { font-weight: 600 }
svg .tick { fill: var(--soft); font-size: 11px } svg .grid { stroke: var(--faint) }
polyline { fill: none; stroke-width: 2; stroke: var(--c) } circle, polygon { fill: var(--c) }
.legend span { margin-right: 1.2rem; white-space: nowrap } .swatch { width: 12px; margin-right: 5px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); text-align: right;
  vertical-align: bottom }
th:first-child, td:first-child, .words td, .words th { text-align: left; vertical-align: top }
th { font-weight: 600; color: var(--soft) } pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def make_page(results: Results) -> str:
    """The whole HTML file."""
    colours = {name: place % COLOURS for place, name in enumerate(_servers(results))}
    classes = "".join(f".c{colour} {{ --c: var(--c{colour}) }} " for colour in range(COLOURS))
    models = dict.fromkeys(each.model for each in results.measurements)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>corral bench</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<style>{_STYLE}{classes}</style></head><body>",
        "<h1>corral bench</h1>",
        f"<p>{escape(results.made)}, corral {escape(results.corral)}</p>",
        _words(results.machine.items()),
        *(_model(results, model, colours) for model in models),
        _problems(results.problems),
        "<h2>Servers</h2>",
        _servers_table(results.servers),
        "<h2>How it was measured</h2>",
        *_method(results),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _servers(results: Results) -> list[str]:
    """Names of the servers in the order of their first measurement, corral first."""
    names = dict.fromkeys(each.server for each in results.measurements)
    return sorted(names, key=lambda name: name != "corral")


def _model(results: Results, model: str, colours: dict[str, int]) -> str:
    mine = [each for each in results.measurements if each.model == model]
    middles = middle_figures(selected(mine, load="standard"))
    plots = [_plot(column, middles, colours, log=log) for column, log in PLOTS]
    shown = dict.fromkeys(server for _, server in middles)
    legend = "".join(f"<span>{swatch(colours[name])}{escape(name)}</span>" for name in shown)
    one = Results(measurements=tuple(mine))
    tables = [_table(table) for table in [*ratio_tables(one), *result_tables(one)]]
    drawn = [f'<p class="legend">{legend}</p><div class="plots">', *plots, "</div>"] if shown else []
    return "\n".join([f"<h2>{escape(model)}</h2>", *drawn, *tables])


def _plot(
    column: Column, middles: dict[tuple[int, str], dict[str, float]], colours: dict[str, int], *, log: bool
) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for (users, server), figures in middles.items():
        if column.figure in figures:
            points.setdefault(server, []).append((users, figures[column.figure] * column.scale))
    lines = [Curve(name, colours[name], tuple(found)) for name, found in points.items()]
    title = f"{column.title}, {column.unit}" if column.unit else column.title
    return draw_plot(title, lines, digits, log=log)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    body = "\n".join(_row(row) for row in table.rows)
    shown = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<h3>{escape(table.title)}</h3>\n<div class="scroll">{shown}</div>'


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _words(rows: Iterable[tuple[str, ...]]) -> str:
    return '<table class="words">' + "\n".join(_row(row) for row in rows) + "</table>"


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    return "<h2>Not measured</h2><ul>" + "".join(f"<li>{escape(each)}</li>" for each in problems) + "</ul>"


def _servers_table(servers: Sequence[Server]) -> str:
    rows = [
        (each.name, f"{each.kind} {each.version}", each.command, "; ".join(each.notes)) for each in servers
    ]
    return _words([("name", "version", "command", "notes"), *rows])


def _method(results: Results) -> list[str]:
    used = dict.fromkeys(each.load for each in results.measurements if each.load in WORKLOADS)
    about = [(name, WORKLOADS[name].about) for name in used]
    prompt, reply = results.size
    return [
        f"<p>Loads (the standard one here: {prompt} tokens of prompt, {reply} generated):</p>",
        _words(about),
        "<p>Medians over the rounds. All users begin at once; tokens are counted by the server; times are "
        "those at which the client saw them, from connecting on. Ratios are so turned that more is better. "
        "Memory is the proportional set size of all processes of a server.</p>",
        f"<pre>{escape(results.command)}</pre><p>Seed of the prompts: {escape(results.seed)}</p>",
    ]
