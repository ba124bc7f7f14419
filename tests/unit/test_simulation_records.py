"""What the simulation found out about records."""

from __future__ import annotations

import pytest

from payload_runner.logfile import encode_record


@pytest.mark.parametrize("name", ["seq", "kind", "at"])
def test_a_field_cannot_take_the_place_of_a_records_header(name: str) -> None:
    with pytest.raises(ValueError, match="header"):
        encode_record(1, "ack", 0.0, {name: 7})
