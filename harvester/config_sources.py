"""What a compilation read: files, names that were looked for, environment variables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harvester.errors import ConfigurationError, Problem
from harvester.reading import read_regular


@dataclass(slots=True)
class Sources:
    """What a compilation read: it stays true as long as these stay as they are."""

    environ: Mapping[str, str]
    layers: list[Path] = field(default_factory=list)
    inputs: dict[str, str | None] = field(default_factory=dict)  # path -> SHA-256, None: absent
    variables: dict[str, str | None] = field(default_factory=dict)

    def read(self, path: Path) -> bytes | None:
        """A file's bytes, or None when there is no such file; either is noted."""
        try:
            text = read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            self.inputs[str(path)] = None
            return None
        except OSError as error:
            raise one_problem(path, "", "", f"cannot be read: {error.strerror}") from None
        self.inputs[str(path)] = hashlib.sha256(text).hexdigest()
        return text

    def variable(self, name: str) -> str | None:
        """An environment variable's value; it is noted."""
        self.variables[name] = self.environ.get(name)
        return self.environ.get(name)


def one_problem(path: Path, key: str, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem(str(path), key, value, expected))
