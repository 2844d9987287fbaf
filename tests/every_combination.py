"""All rows of the table of combinations, and what their checks find, each of which is run once in a process."""

import functools
import importlib.util
from collections.abc import Callable

import combined_calls
import combined_compile
import combined_placement
import combined_ranks
import combined_weights
from combinations import Found, Row, check

ROWS: dict[str, dict[str, Row]] = {
    "Weights": combined_weights.ROWS,
    "Memory and kernels": combined_placement.ROWS,
    "Calls and pipelines": combined_calls.ROWS,
}
NAMES = {name: heading for heading, rows in ROWS.items() for name in rows}


def missing(needs: tuple[str, ...]) -> list[str]:
    """The packages of these that are not installed."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


@functools.cache
def found(name: str) -> Found:
    return check(ROWS[NAMES[name]][name])


@functools.cache
def found_compiled(name: str) -> Found:
    return combined_compile.found(combined_compile.WAYS[name])


@functools.cache
def found_on_ranks(name: str) -> Found:
    return combined_ranks.check_ranks(name)


def fresh_page(page: Callable[..., str]) -> str:
    """The page from results of this process, those that are not there yet made now."""
    tables = {
        heading: [(name, row.how, found(name), row.notes) for name, row in rows.items()]
        for heading, rows in ROWS.items()
    }
    tables["torch.compile"] = [
        (name, way.how, found_compiled(name), way.notes) for name, way in combined_compile.WAYS.items()
    ]
    tables["Several processes"] = [
        (name, how, found_on_ranks(name), notes) for name, (how, _, notes) in combined_ranks.WAYS.items()
    ]
    return page(tables)
