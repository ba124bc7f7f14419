"""Site files made of anything: one clear refusal, never a traceback, never for long."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.config_yaml import read_layer
from harvester.errors import ConfigurationError

PATH = Path("site.yaml")
# What YAML reads specially, beside words of real site files.
_TOKENS = st.sampled_from(
    [
        *("extends", "queues", "node", "budgets", "spool", "local", "12:00:00", "80GB", "1e999"),
        *(":", ": ", "- ", "\n", "  ", "\t", "{", "}", "[", "]", ",", "#", "|", ">", "%", "@", "`"),
        *("&a", "*a", "<<", "!!python/object:os.system", "!!binary", "!!set", "? ", "---\n", "..."),
        *(
            "null",
            "~",
            "yes",
            "0x10",
            "-.inf",
            ".nan",
            "2026-01-01",
            '"',
            "'",
            "\\x00",
            "\0",
            "\ufeff",
        ),
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(_TOKENS, max_size=40).map("".join))
def test_any_text_is_a_layer_or_a_refusal(text: str) -> None:
    _read(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_layer_or_a_refusal(data: bytes) -> None:
    _read(data)


def test_aliases_of_aliases_are_refused_before_they_multiply() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    _read("\n".join(lines).encode(), refused=True)


def test_deep_nesting_is_refused() -> None:
    _read(b"a: " + b"[" * 100_000, refused=True)
    _read(b"{a: " * 5_000, refused=True)


def _read(data: bytes, *, refused: bool = False) -> None:
    if refused:
        with pytest.raises(ConfigurationError, match=r"site\.yaml"):
            read_layer(PATH, data)
    else:
        with contextlib.suppress(ConfigurationError):
            read_layer(PATH, data)
