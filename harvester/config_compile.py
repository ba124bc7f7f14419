"""Compiles a site file: finds its layers, checks them, and prints one normalised JSON document.

Run as ``python -m harvester.config_compile NAME|PATH [POLICY OWNER]`` by ``harvester.config``, so
that pyyaml and pydantic never stay in a daemon's memory. Standard output is ``{"site", "layers",
"origins", "rulings", "inputs", "environment"}`` with exit code 0, or ``{"problems": [...]}`` with
exit code 78.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester import paths
from harvester.config_check import validate, validate_policy
from harvester.config_origins import origins
from harvester.config_policy import SYSTEM_POLICY, PolicyFile, Ruling, apply_policy
from harvester.config_sources import Sources, one_problem
from harvester.config_values import Expansion
from harvester.config_yaml import Layer, lay_over, read_layer
from harvester.errors import ConfigurationError, Problem
from harvester.site import Site

_NAMES = re.compile(r"[A-Za-z0-9_.-]+")


def main(arguments: Sequence[str]) -> int:
    """Print the compiled form of the site that the first argument names."""
    name, *rest = arguments
    policy = PolicyFile(Path(rest[0]), int(rest[1])) if rest else PolicyFile()
    try:
        document = compile_site(name, os.environ, policy)
    except ConfigurationError as error:
        problems = [problem._asdict() for problem in error.problems]
        print(json.dumps({"problems": problems}))
        return error.exit_code
    print(json.dumps(document, default=str))
    return 0


def compile_site(
    name: str, environ: Mapping[str, str], policy: PolicyFile = SYSTEM_POLICY
) -> dict[str, Any]:
    """The normalised document of a site file; see the module's docstring.

    Raises:
        ConfigurationError: with every problem of the merged file at once.
    """
    sources = Sources(environ)
    first, layer = _layers(name, sources)
    expansion = Expansion(first, layer, sources)
    site = expansion.site(validate(first, layer, expansion.problems()))
    site, rulings = _within_policy(site, policy, sources)
    return {
        "site": dataclasses.asdict(site),
        "layers": [str(path) for path in sources.layers],
        "origins": origins(layer, sources.layers),
        "rulings": [dataclasses.asdict(ruling) for ruling in rulings],
        "inputs": sources.inputs,
        "environment": sources.variables,
    }


def _within_policy(
    site: Site, policy: PolicyFile, sources: Sources
) -> tuple[Site, tuple[Ruling, ...]]:
    policy.check()  # refuses one that is not its owner's alone
    text = sources.read(policy.path)
    if text is None:
        return site, ()
    layer = read_layer(policy.path, text, "a policy file")
    limits = validate_policy(policy.path, layer).model_dump()
    return apply_policy(site, limits, policy.path, sources.layers)


# --- finding and layering ---


def _layers(name: str, sources: Sources) -> tuple[Path, Layer]:
    path, text = _find(name, sources)
    sources.layers.append(path)
    first, layer = path, read_layer(path, text)
    while (base := layer.values.pop("extends", None)) is not None:
        mark = layer.marks.get(("extends",))
        if not isinstance(base, str):
            raise one_problem(path, "extends", repr(base), "expected the name of a site file")
        path, text = _find(base, sources, asked_by=path, line=mark.line if mark else None)
        sources.layers.append(path)
        layer = lay_over(read_layer(path, text), layer)
    layer.values.setdefault("name", first.stem)
    return first, layer


_CIRCLE = "expected another site file; this one would extend itself"


def _find(
    name: str, sources: Sources, asked_by: Path | None = None, line: int | None = None
) -> tuple[Path, bytes]:
    for path in _candidates(name, sources.environ, asked_by):
        if path in sources.layers:
            continue  # ``extends: local`` in one's own local.yaml means the next one
        text = sources.read(path)
        if text is not None:
            if path.parent == Path.cwd() and not _is_path(name):
                _refuse_foreign(path)
            return path, text
    asker, key = ("", "") if asked_by is None else (str(asked_by), "extends")
    circle = set(_candidates(name, sources.environ, asked_by)) & set(sources.layers)
    expected = _CIRCLE if circle else _nearest_site(name, sources)
    raise ConfigurationError(Problem(asker or "site", key, repr(name), expected, line))


def _refuse_foreign(path: Path) -> None:
    # Nobody named this file by its path, and its prologue lines run as shell.
    status = path.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
        raise one_problem(
            path, "", "", "belongs to or can be written by others; name it by its path to use it"
        )


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _candidates(name: str, environ: Mapping[str, str], asked_by: Path | None) -> tuple[Path, ...]:
    if _is_path(name):
        base = Path.cwd() if asked_by is None else asked_by.parent
        return ((base / name).absolute(),)
    if not _NAMES.fullmatch(name):
        return ()
    return tuple(base / f"{name}.yaml" for base in paths.site_directories(environ))


def _nearest_site(name: str, sources: Sources) -> str:
    if _is_path(name):
        return "there is no such file"
    places = paths.site_directories(sources.environ)
    known = sorted({path.stem for base in places[1:] for path in base.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known sites: {', '.join(known) or 'none'}"
    looked = ", ".join(str(base) for base in places)
    return f"no site file of this name in {looked}; {hint}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
