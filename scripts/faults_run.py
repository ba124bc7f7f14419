"""Runs the tests marked ``fault`` and counts by fault: see ``scripts/faults``.

A try is one time that a fault was brought about: each set of parameters of a test, each example
that Hypothesis made up, and what a test that tries many says itself by ``record_property("tries",
n)``. Tests run one after another: they load the machine enough.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest

from tests.faults import FAULTS, NAMES

_FLOORS = ("live", "slow")  # marks of tests that run only when asked for
_TRIES = "tries"
_OTHERS = "Others"
_HEAD = ("fault", "tests", "tried", "outcome")


@dataclass
class Record:
    """What became of the tests of one fault."""

    selected: int = 0
    tests: int = 0  # that ran
    tries: int = 0
    failed: list[str] = field(default_factory=list)
    repeated: int = 0  # failed, and were sound at the second try
    absent: Counter[str] = field(default_factory=Counter)  # reasons why a test did not run

    @property
    def outcome(self) -> str:
        """In words, for the table."""
        said = []
        if self.failed:
            said.append(f"FAILED {len(self.failed)} of {self.tests}: {', '.join(self.failed)}")
        elif self.tests:
            said.append("passed")
        if self.repeated:
            said.append(f"{self.repeated} only at the second try")
        said += [f"not here ({count}): {why}" for why, count in sorted(self.absent.items())]
        missing = self.selected - self.tests - sum(self.absent.values())
        if missing > 0:
            said.append(f"not reached ({missing})")
        return "; ".join(said) or "no test was selected"


class FaultTable:
    """A pytest plugin: leaves only the tests of faults, and keeps their books."""

    def __init__(self, floors: frozenset[str]) -> None:
        """``floors``: which of "live" and "slow" are to run."""
        self.records: dict[str, Record] = {}
        self._floors = floors
        self._faults: dict[str, list[str]] = {}  # by the id of the test
        self._reruns: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        marked = [item for item in items if item.get_closest_marker("fault")]
        chosen = [item for item in marked if not self._leaves_out(item)]
        for item in chosen:
            self._faults[item.nodeid] = _faults_of(item)
            for fault in _faults_of(item):
                self._record(fault).selected += 1
            _count_examples(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def _leaves_out(self, item: pytest.Item) -> bool:
        missing = [f for f in _FLOORS if item.get_closest_marker(f) and f not in self._floors]
        if missing:
            why = "needs " + " ".join(f"--{floor}" for floor in missing)
            for fault in _faults_of(item):
                self._record(fault).selected += 1
                self._record(fault).absent[why] += 1
        return bool(missing)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome  # "rerun" is not among pytest's own
        if outcome == "rerun":
            self._reruns.add(report.nodeid)
        elif report.when == "call" or outcome != "passed":
            for fault in self._faults[report.nodeid]:
                self._book(self._record(fault), report)

    def _book(self, record: Record, report: pytest.TestReport) -> None:
        if report.skipped:
            record.absent[_reason(report)] += 1
            return
        name = report.nodeid.rpartition("/")[2]
        if report.when == "call":
            record.tests += 1
            record.tries += _tries_of(report)
        if report.failed and name not in record.failed:
            record.failed.append(name)
        elif report.nodeid in self._reruns:
            record.repeated += 1

    def _record(self, fault: str) -> Record:
        return self.records.setdefault(fault, Record())


def _faults_of(item: pytest.Item) -> list[str]:
    return [mark.args[0] for mark in item.iter_markers("fault")]


def _count_examples(item: pytest.Item) -> None:
    """Have Hypothesis's examples counted, by the handle that it offers to plugins."""
    handle: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return
    tries = 0
    inner = handle.inner_test

    @wraps(inner)
    def counting(*args: object, **given: object) -> object:
        nonlocal tries
        tries += 1
        return inner(*args, **given)

    handle.inner_test = counting
    run: Callable[[], None] = item.runtest

    def run_and_tell() -> None:
        nonlocal tries
        tries = 0
        try:
            run()
        finally:
            item.user_properties.append((_TRIES, tries))

    item.runtest = run_and_tell  # type: ignore[method-assign]


def _tries_of(report: pytest.TestReport) -> int:
    told = [value for name, value in report.user_properties if name == _TRIES]
    return int(str(told[-1])) if told else 1


def _reason(report: pytest.TestReport) -> str:
    words = report.longrepr
    said = str(words[2] if isinstance(words, tuple) else words)
    return said.removeprefix("Skipped: ").strip()


def rows(records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """Lines of the table: a title alone, or fault, tests, tries and outcome."""
    others = tuple(sorted(set(records) - NAMES))
    for title, names in {**FAULTS, **({_OTHERS: others} if others else {})}.items():
        yield (title,)
        for name in names:
            record = records.get(name, Record())
            yield (name, str(record.tests), str(record.tries), record.outcome)


def as_markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """A table for a document."""
    written = [_markdown_row(_HEAD), "| --- | ---: | ---: | --- |"]
    for line in lines:
        padded = line if len(line) > 1 else (f"**{line[0]}**", "", "", "")
        written.append(_markdown_row([cell.replace("|", "\\|") for cell in padded]))
    return "\n".join(written)


def as_text(lines: Sequence[tuple[str, ...]]) -> str:
    """A table for a terminal."""
    width = max(len(line[0]) for line in lines) + 2
    written = [_text_row(_HEAD, width)]
    for line in lines:
        written.append(_text_row(("  " + line[0], *line[1:]), width) if line[1:] else line[0])
    return "\n".join(written)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _text_row(cells: Sequence[str], width: int) -> str:
    fault, tests, tried, outcome = cells
    return f"{fault:<{width}}  {tests:>5}  {tried:>6}  {outcome}"


def main(argv: Sequence[str]) -> int:
    """Run, print the table on stdout and everything else on stderr; the exit code is pytest's."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=__doc__, epilog="Other arguments go on to pytest."
    )
    parser.add_argument("--live", action="store_true", help="also with real clusters and servers")
    parser.add_argument("--slow", action="store_true", help="also what takes minutes")
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")
    given, others = parser.parse_known_args(argv)
    table = FaultTable(frozenset(floor for floor in _FLOORS if getattr(given, floor)))
    with contextlib.redirect_stdout(sys.stderr):
        code = int(pytest.main(["-q", *others], plugins=[table]))
    lines = list(rows(table.records))
    print(as_markdown(lines) if given.markdown else as_text(lines))
    ran = sum(record.tests for record in table.records.values())
    failed = sum(len(record.failed) for record in table.records.values())
    print(f"\n{ran} tests, {failed} failed", file=sys.stderr)
    # Nothing to run is an answer where only live tests try a fault.
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
