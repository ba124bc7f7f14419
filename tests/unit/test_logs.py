"""Log lines of long-running commands carry what others say, but not their terminal commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import pytest

from harvester.cli.logs import set_up_logs

TITLE = "\x1b]0;owned\x07"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("environ", [{}, {"JOURNAL_STREAM": "8:1"}])
def test_control_characters_of_a_payload_reach_no_terminal(
    environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs(0, environ)
    logging.getLogger("x").warning("An attempt failed. reason=%s", f"stderr ends: {TITLE}\x9b2J\r")
    line = capsys.readouterr().err
    assert "stderr ends: ?]0;owned??2J?" in line
    assert line.rstrip("\n").isprintable()


@pytest.mark.parametrize("environ", [{}, {"JOURNAL_STREAM": "8:1"}])
def test_tracebacks_keep_their_lines(
    environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs(0, environ)
    try:
        raise ValueError(TITLE)
    except ValueError:
        logging.getLogger("x").exception("Goes on. step=lease")
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.count("\n") > 2
    assert "\x1b" not in told
