"""The timeline of an allocation."""

from __future__ import annotations

from typing import Any

from harvester.views.timeline import Happened, timeline


def at(seconds: float, kind: str, attempt: str = "", **fields: Any) -> Happened:
    return Happened(kind, 1000.0 + seconds, {"attempt": attempt, **fields})


def started(seconds: float, attempt: str, *gpus: str) -> Happened:
    nodes = list(dict.fromkeys(gpu.partition(":")[0] for gpu in gpus))
    shown = [gpu for gpu in gpus if ":" in gpu]
    return at(seconds, "attempt_started", attempt, nodes=nodes, gpus=shown)


def ended(seconds: float, attempt: str, state: str = "succeeded") -> Happened:
    return at(seconds, "attempt_ended", attempt, state=state)


def chart(*events: Happened, width: int = 26) -> list[str]:
    return timeline(events, width).partition("\n\n")[0].splitlines()


def test_every_gpu_has_a_row_and_every_attempt_a_letter() -> None:
    drawn = chart(
        at(0, "allocation_started"),
        started(0, "1.1.1.1", "n1:0"),
        started(0, "1.2.1.1", "n1:1", "n2:0"),
        ended(10, "1.1.1.1"),
        ended(15, "1.2.1.1"),
        started(10, "1.3.1.1", "n1:0"),
        ended(20, "1.3.1.1"),
    )
    assert drawn == [
        "      0 s             20 s",
        "n1:0  AAAAAAAAAACCCCCCCCCC",
        "n1:1  BBBBBBBBBBBBBBB.....",
        "n2:0  BBBBBBBBBBBBBBB.....",
    ]


def test_payloads_that_share_a_gpu_have_a_row_each() -> None:
    drawn = chart(
        started(0, "1.1.1.1", "n1:0/0.5"),
        started(10, "1.2.1.1", "n1:0/0.5"),
        ended(20, "1.1.1.1"),
        ended(20, "1.2.1.1"),
    )
    assert drawn[1:] == ["n1:0  AAAAAAAAAAAAAAAAAAAA", "n1:0  ..........BBBBBBBBBB"]


def test_elastic_payload_gains_and_loses_the_rows_of_its_nodes() -> None:
    drawn = chart(
        started(0, "1.1.1.1", "n1:0"),
        at(5, "attempt_resized", "1.1.1.1", nodes=["n1", "n2"], reason="lent"),
        at(15, "attempt_resized", "1.1.1.1", nodes=["n1"], reason="taken back"),
        ended(20, "1.1.1.1"),
    )
    assert drawn[1:] == ["n1:0  AAAAAAAAAAAAAAAAAAAA", "n2:0  .....AAAAAAAAAA....."]


def test_nodes_without_gpus_have_a_row_each_and_what_runs_goes_to_the_end() -> None:
    drawn = chart(started(0, "1.1.1.1", "n1", "n2"), at(18, "heartbeat"), width=22)
    assert drawn[1:] == ["n1  AAAAAAAAAAAAAAAAAA", "n2  AAAAAAAAAAAAAAAAAA"]


def test_legend_says_where_from_how_long_and_how_it_ended() -> None:
    events = (started(2, "1.1.1.1", "n1:0", "n2:0"), ended(5, "1.1.1.1", "failed"))
    legend = timeline((at(0, "allocation_started"), *events)).partition("\n\n")[2]
    assert legend.splitlines()[1].split() == ["A", "1.1.1.1", "2", "2.0", "3.0", "failed"]


def test_allocation_in_which_nothing_ran_says_so() -> None:
    assert timeline([at(0, "allocation_started")]).startswith("No payload has started")
