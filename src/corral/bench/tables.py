"""Results as rows: which figures, under what heading, in which unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corral.bench.figures import medians
from corral.bench.results import Measurement, Results, selected


@dataclass(frozen=True, slots=True)
class Column:
    """A figure as people read it: `scale` times its value, in `unit`."""

    figure: str
    title: str
    unit: str = ""
    scale: float = 1.0
    more_is_better: bool = False

    def show(self, figures: Mapping[str, float]) -> str:
        """The value in its unit with three digits, or a dash if `figures` lack it."""
        value = figures.get(self.figure)
        return "-" if value is None else digits(value * self.scale)


FIRST = Column("first_token_p50", "first token p50", "s")
TOTAL = Column("total_rate", "new tokens/s, all", more_is_better=True)
USER = Column("user_rate", "tokens/s a user", more_is_better=True)
GAP99 = Column("inter_token_p99", "inter-token p99", "ms", 1e3)
MEMORY = Column("peak_memory", "peak memory", "MB", 1e-6)
FAILURES, EARLY = Column("failures", "failed"), Column("early_stops", "stopped early")

_WORK = (
    TOTAL,
    USER,
    Column("user_rate_min", "slowest user", more_is_better=True),
    Column("first_token_mean", "first token mean", "s"),
    FIRST,
    Column("first_token_p99", "first token p99", "s"),
    Column("inter_token_p50", "inter-token p50", "ms", 1e3),
    GAP99,
    MEMORY,
    Column("kv_used_peak", "KV used", "%", 100),
    Column("kv_waste_mean", "KV wasted", "%", 100),
    Column("start_to_first_token", "start to first token", "s"),
    Column("client_cpu", "client CPU", "%", 100),
    Column("prompt_tokens", "prompt tokens"),
    FAILURES,
    EARLY,
)
COLUMNS = {
    "standard": _WORK,
    "search": _WORK,
    "mixed": _WORK,
    "shared-prefix": (
        Column("cold_first_token", "first token, cold", "s"),
        Column("first_token_p50", "first token, repeat p50", "s"),
        Column("first_token_p99", "first token, repeat p99", "s"),
        MEMORY,
        Column("prompt_tokens", "prompt tokens"),
        FAILURES,
    ),
    "newcomer": (
        Column("before_p50", "inter-token p50 before", "ms", 1e3),
        Column("before_p99", "p99 before", "ms", 1e3),
        Column("while_p50", "p50 while", "ms", 1e3),
        Column("while_p99", "p99 while", "ms", 1e3),
        Column("while_max", "longest while", "ms", 1e3),
        Column("stall_ratio", "p99 while / p50 before"),
        Column("newcomer_first_token", "newcomer's first token", "s"),
        FAILURES,
    ),
    "reload": (Column("load_to_first_token", "load to first token", "s"), FAILURES),
    "usable": (Column("usable_users", "most users that stay usable", more_is_better=True),),
    "idle": (
        Column("idle_cpu", "CPU while idle", "% of a core", 100),
        Column("memory", "memory", "MB", 1e-6),
    ),
}
RATIOS = (TOTAL, USER, FIRST, GAP99, MEMORY, Column("start_to_first_token", "start to first token", "s"))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def digits(value: float) -> str:
    """A number with three significant digits and without an exponent."""
    size = abs(value)
    places = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{places}f}"


def result_tables(results: Results) -> list[Table]:
    """A table for each model and workload: medians over the rounds, a row a server and number of users."""
    tables = []
    for model in dict.fromkeys(each.model for each in results.measurements):
        for load, columns in COLUMNS.items():
            found = selected(results.measurements, model=model, load=load)
            if found:
                tables.append(_table(f"{model}: {load}", columns, found))
    return tables


def _table(title: str, columns: Sequence[Column], found: Sequence[Measurement]) -> Table:
    middles = middle_figures(found)
    known = [column for column in columns if any(column.figure in figures for figures in middles.values())]
    known = [c for c in known if c not in (FAILURES, EARLY) or any(f.get(c.figure) for f in middles.values())]
    by_users = "usable" not in {each.load for each in found}
    rows = [
        (server, *([str(users)] if by_users else []), *(column.show(figures) for column in known))
        for (users, server), figures in middles.items()
    ]
    headings = [f"{column.title}, {column.unit}" if column.unit else column.title for column in known]
    return Table(title, ("server", *(["users"] if by_users else []), *headings), tuple(rows))


def middle_figures(found: Sequence[Measurement]) -> dict[tuple[int, str], dict[str, float]]:
    """The medians over the rounds by number of users and server, users first."""
    keys = dict.fromkeys((each.users, each.server) for each in sorted(found, key=lambda each: each.users))
    return {
        (users, server): medians([each.figures for each in selected(found, users=users, server=server)])
        for users, server in keys
    }


def ratio_tables(results: Results, ours: str = "corral") -> list[Table]:
    """For each model the ratios of corral's medians to others' in the standard workload; more is better."""
    tables = []
    for model in dict.fromkeys(each.model for each in results.measurements):
        middles = middle_figures(selected(results.measurements, model=model, load="standard"))
        rows = [
            (server, str(users), *(_ratio(column, middles[users, ours], figures) for column in RATIOS))
            for (users, server), figures in middles.items()
            if server != ours and (users, ours) in middles
        ]
        headings = ("against", "users", *(column.title for column in RATIOS))
        if rows:
            tables.append(
                Table(f"{model}: {ours} is better by", headings, tuple(sorted(rows, key=lambda row: row[0])))
            )
    return tables


def _ratio(column: Column, ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    a, b = ours.get(column.figure), theirs.get(column.figure)
    if not a or not b:
        return "-"
    return f"{digits(a / b if column.more_is_better else b / a)}x"
