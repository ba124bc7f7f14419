"""What an attempt came to, from its exit and its output.json."""

from __future__ import annotations

import json

import pytest

from payload_runner.outcome import (
    OUTPUT_LIMIT_BYTES,
    BadOutput,
    Exit,
    Verdict,
    describe_exit,
    judge,
    parse_metadata,
)

GOOD = Exit(code=0)


def test_zero_exit_and_finite_loss_succeed() -> None:
    verdict = judge(GOOD, b'{"status": 0, "loss": 0.25, "message": "fine"}')
    assert verdict == Verdict("succeeded", loss=0.25, message="fine")


@pytest.mark.parametrize("output", [b'{"loss": 3}', b'\xef\xbb\xbf{"loss": 3, "status": 0.0}'])
def test_missing_status_and_integer_loss_are_good(output: bytes) -> None:
    assert judge(GOOD, output) == Verdict("succeeded", loss=3.0)


def test_message_that_is_no_text_is_kept_as_json() -> None:
    assert judge(GOOD, b'{"loss": 1, "message": {"a": 1}}').message == '{"a": 1}'


@pytest.mark.fault("result wrong or missing")
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (None, "output.json was not written"),
        (b"", "output.json is empty"),
        (b" \n", "output.json is empty"),
        (b"loss=3", "output.json is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[1, 2]", "output.json: expected an object, got [1, 2]"),
        (b"{}", "output.json: there is no loss"),
        (b'{"loss": "abc"}', 'output.json: loss is "abc", not a number'),
        (b'{"loss": "0.5"}', 'output.json: loss is "0.5", not a number'),
        (b'{"loss": null}', "output.json: loss is null, not a number"),
        (b'{"loss": true}', "output.json: loss is true, not a number"),
        (b'{"loss": [0.5]}', "output.json: loss is [0.5], not a number"),
        (b'{"loss": NaN}', "output.json: loss is nan, not finite"),
        (b'{"loss": Infinity}', "output.json: loss is inf, not finite"),
        (b'{"loss": -Infinity}', "output.json: loss is -inf, not finite"),
        (b'{"loss": 1e999}', "output.json: loss is inf, not finite"),
        (b'{"loss": %d}' % 10**400, "output.json: loss is an integer beyond the range of a float"),
        (b'{"status": 3, "loss": 1}', "output.json: status is 3, not 0"),
        (b'{"status": "0", "loss": 1}', 'output.json: status is "0", not 0'),
        (b'{"status": 1, "message": "no data"}', "output.json: status is 1, not 0: no data"),
    ],
)
def test_bad_output_blames_the_point_with_the_true_reason(
    output: bytes | None, reason: str
) -> None:
    assert judge(GOOD, output) == Verdict("failed", "point", reason)


@pytest.mark.fault("result wrong or missing")
@pytest.mark.parametrize(
    "output", [b"\xff\xfe\xfd", b"[" * 200_000, b"9" * 50_000, b'{"loss": 1', b"\x00" * 100]
)
def test_garbage_is_a_failure_and_never_an_exception(output: bytes) -> None:
    verdict = judge(GOOD, output)
    assert (verdict.state, verdict.blame) == ("failed", "point")
    assert verdict.reason


@pytest.mark.fault("result wrong or missing")
def test_oversized_output_is_refused() -> None:
    verdict = judge(GOOD, b" " * (OUTPUT_LIMIT_BYTES + 1))
    assert verdict.reason == f"output.json is larger than {OUTPUT_LIMIT_BYTES} bytes"


def test_good_output_does_not_excuse_a_bad_exit() -> None:
    verdict = judge(Exit(code=3), b'{"loss": 1}', errors="Traceback\nKeyError: 'lr'\n")
    reason = "exit code 3; stderr ends: Traceback\nKeyError: 'lr'"
    assert verdict == Verdict("failed", "point", reason)


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Exit(code=127), "exit code 127 (command not found)"),
        (Exit(code=126), "exit code 126 (not executable)"),
        (Exit(signal=11), "killed by SIGSEGV"),
        (
            Exit(signal=9, peak_memory_mb=900),
            "killed by SIGKILL, not by the harvester"
            " (out of memory?, its largest process held 900 MB)",
        ),
        (Exit(signal=200), "killed by signal 200"),
    ],
)
def test_exit_is_told_in_words(exit_: Exit, words: str) -> None:
    assert describe_exit(exit_) == words


def test_metadata_is_a_dictionary() -> None:
    assert parse_metadata(b'{"accuracy": 0.9}', "meta.json") == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b"[1]", "expected an object, got [1]"),
        (b"{", "not JSON"),
        (json.dumps({"a": "x" * 1_000_000}).encode(), "at most 1000000"),
    ],
)
def test_metadata_that_cannot_be_relayed_is_dropped_with_a_note(data: bytes, words: str) -> None:
    with pytest.raises(BadOutput, match=r"^meta\.json dropped") as caught:
        parse_metadata(data, "meta.json")
    assert words in str(caught.value)
