"""Compiles a site file: finds its layers, checks them, and prints one normalised JSON document.

Run as ``python -m harvester.config_compile NAME|PATH`` by ``harvester.config``, so that pyyaml and
pydantic never stay in a daemon's memory. Standard output is ``{"site", "layers", "inputs",
"environment"}`` with exit code 0, or ``{"problems": [...]}`` with exit code 78.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harvester import paths
from harvester.config_rules import broken_rules
from harvester.config_schema import QueueKeys, SiteKeys
from harvester.config_yaml import Key, Layer, lay_over, read_layer
from harvester.errors import ConfigurationError, Problem
from harvester.site import (
    Budgets,
    CentralChoice,
    LocalCluster,
    PlanningChoice,
    Queue,
    RunnerChoice,
    Site,
    WalltimeBin,
)
from payload_runner.protocol import NodeShape

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_MEGABYTE = 1_000_000
_NAMES = re.compile(r"[A-Za-z0-9_.-]+")


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
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self.inputs[str(path)] = None
            return None
        except OSError as error:
            raise _one(path, "", "", f"cannot be read: {error.strerror}") from None
        self.inputs[str(path)] = hashlib.sha256(text).hexdigest()
        return text

    def variable(self, name: str) -> str | None:
        """An environment variable's value; it is noted."""
        self.variables[name] = self.environ.get(name)
        return self.environ.get(name)


def main(arguments: Sequence[str]) -> int:
    """Print the compiled form of the site that the one argument names."""
    try:
        document = compile_site(arguments[0], os.environ)
    except ConfigurationError as error:
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        print(json.dumps({"problems": problems}))
        return error.exit_code
    print(json.dumps(document, default=str))
    return 0


def compile_site(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The normalised document of a site file; see the module's docstring.

    Raises:
        ConfigurationError: with every problem of the merged file at once.
    """
    sources = Sources(environ)
    first, layer = _layers(name, sources)
    keys = _validate(first, layer)
    site = _Expansion(first, layer, sources).site(keys)
    return {
        "site": dataclasses.asdict(site),
        "layers": [str(path) for path in sources.layers],
        "inputs": sources.inputs,
        "environment": sources.variables,
    }


# --- finding and layering ---


def _layers(name: str, sources: Sources) -> tuple[Path, Layer]:
    path, text = _find(name, sources)
    sources.layers.append(path)
    first, layer = path, read_layer(path, text)
    while (base := layer.values.pop("extends", None)) is not None:
        mark = layer.marks.get(("extends",))
        if not isinstance(base, str):
            raise _one(path, "extends", repr(base), "expected the name of a site file")
        path, text = _find(base, sources, asked_by=path, line=mark.line if mark else None)
        sources.layers.append(path)
        layer = lay_over(read_layer(path, text), layer)
    layer.values.setdefault("name", first.stem)
    return first, layer


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
    raise ConfigurationError(
        Problem(asker or "site", key, repr(name), _nearest_site(name, sources), line)
    )


def _refuse_foreign(path: Path) -> None:
    # Nobody named this file by its path, and its prologue lines run as shell.
    status = path.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
        raise _one(
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
        return "there is no such file, or it extends itself"
    places = paths.site_directories(sources.environ)
    known = sorted({path.stem for base in places[1:] for path in base.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known sites: {', '.join(known) or 'none'}"
    looked = ", ".join(str(base) for base in places)
    return f"no site file of this name in {looked}; {hint}"


# --- checking ---


def _validate(first: Path, layer: Layer) -> SiteKeys:
    problems: list[Problem] = []
    keys = None
    try:
        keys = SiteKeys.model_validate(layer.values)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems.append(_schema_problem(first, layer, details))
    for key, sentence in broken_rules(layer.values):
        problems.append(_problem(first, layer, key, sentence))
    if problems or keys is None:
        raise ConfigurationError(sorted(problems, key=lambda item: (item.file, item.line or 0)))
    return keys


def _schema_problem(first: Path, layer: Layer, details: ErrorDetails) -> Problem:
    # pydantic names a bad key of a mapping by a last element "[key]".
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    kind = details["type"]
    if kind == "extra_forbidden":
        return _problem(first, layer, key, f"unknown key{_nearest_key(key)}", value="")
    if kind == "missing":
        return _problem(first, layer, key, "expected this key; it has no default", value="")
    return _problem(first, layer, key, _expected(kind, details))


def _expected(kind: str, details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match kind:
        case "literal_error":
            near = difflib.get_close_matches(str(details["input"]), _choices(context), 1, 0.5)
            return f"expected {context['expected']}" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            word = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
            sign, bound = next(iter(context.items()))
            return f"expected {word[sign]} {bound:g}"
        case "string_pattern_mismatch":
            return f"expected text of the form {context['pattern']}"
        case "harvester":
            return details["msg"]
    return _TYPES.get(kind, f"not accepted: {details['msg']}")


_TYPES = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text (put it in quotes)",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected `key: value` lines",
    "model_type": "expected `key: value` lines",
    "too_short": "expected at least one item",
    "string_too_short": "expected some text",
}


def _choices(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", context["expected"])


def _nearest_key(key: Key) -> str:
    known = _known_keys(key[:-1])
    near = difflib.get_close_matches(str(key[-1]), known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _known_keys(parents: Key) -> list[str]:
    model: Any = SiteKeys
    for part in parents:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())  # list[X] of the schema
        model = arguments[0] if arguments else annotation
    return list(model.model_fields)


def _problem(
    first: Path, layer: Layer, key: Key, expected: str, value: str | None = None
) -> Problem:
    place = next(
        (layer.marks[key[:end]] for end in range(len(key), 0, -1) if key[:end] in layer.marks),
        None,
    )
    shown = _shown(layer.values, key) if value is None else value
    file, line = (str(first), None) if place is None else (place.file, place.line)
    return Problem(file, _dotted(key), shown, expected, line)


def _shown(values: Any, key: Key) -> str:
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return ""
    text = values if isinstance(values, str) else json.dumps(values)
    return repr(text)[:80] if isinstance(values, str) else text[:80]


def _dotted(key: Key) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _one(path: Path, key: str, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem(str(path), key, value, expected))


# --- from keys to values ---


class _Expansion:
    """Turns validated keys into a ``Site``: expands paths and fills in what depends on the user."""

    def __init__(self, first: Path, layer: Layer, sources: Sources) -> None:
        self._first = first
        self._layer = layer
        self._sources = sources
        self._problems: list[Problem] = []

    def site(self, keys: SiteKeys) -> Site:
        """The site; ConfigurationError when a path names a variable that is not set."""
        name = keys.name or self._first.stem
        state_dir = self._state_dir(keys, name)
        local = keys.spool.filesystem == "local"
        index = self._path(("state", "index"), keys.state.index)
        spool = self._path(("spool", "path"), keys.spool.path)
        site = Site(
            name=name,
            batch_system=keys.batch_system,
            node=_node(keys),
            queues=tuple(_queue(queue, _nodes_limit(keys)) for queue in keys.queues),
            spool=spool or state_dir / "spool",
            filesystem=keys.spool.filesystem,
            state_dir=state_dir,
            index=index or paths.default_index(state_dir, name, local=local, uid=os.getuid()),
            description=keys.description,
            account=keys.account or "",
            directives=tuple(keys.directives),
            container_runtime=keys.containers.runtime,
            image_dir=_text(self._path(("containers", "image_dir"), keys.containers.image_dir)),
            budgets=_budgets(keys),
            central=self._central(keys),
            runner=_runner(keys),
            planning=_planning(keys),
            local=LocalCluster(nodes=keys.local.nodes, warn_s=keys.local.warn),
        )
        if self._problems:
            raise ConfigurationError(self._problems)
        return site

    def _state_dir(self, keys: SiteKeys, name: str) -> Path:
        for variable in ("XDG_STATE_HOME", "HOME"):
            self._sources.variable(variable)
        default = paths.site_states(self._sources.environ) / name
        return self._path(("state", "dir"), keys.state.dir) or default

    def _central(self, keys: SiteKeys) -> CentralChoice:
        return CentralChoice(
            kind=keys.central.kind,
            url=keys.central.url,
            token_file=self._path(("central", "token_file"), keys.central.token_file),
            ca_file=self._path(("central", "ca_file"), keys.central.ca_file),
            timeout_s=keys.central.timeout,
        )

    def _path(self, key: Key, text: str | None) -> Path | None:
        if text is None:
            return None
        if text == "~" or text.startswith("~/"):
            text = f"$HOME{text[1:]}"
        path = Path(_VARIABLE.sub(lambda match: self._value(key, match), text))
        if not path.is_absolute():
            self._note(key, "expected an absolute path, $NAME or ~ in front")
        return path

    def _value(self, key: Key, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        value = self._sources.variable(name)
        if not value:
            self._note(key, f"expected ${name} to be set in the environment; it is not")
            return "/"
        return value

    def _note(self, key: Key, sentence: str) -> None:
        self._problems.append(_problem(self._first, self._layer, key, sentence))


def _node(keys: SiteKeys) -> NodeShape:
    return NodeShape(
        gpus=keys.node.gpus,
        cores=keys.node.cores,
        memory_mb=(keys.node.memory or 0) // _MEGABYTE,
        gpu_variable=keys.node.gpu_variable,
    )


def _nodes_limit(keys: SiteKeys) -> int:
    # A virtual cluster has as many nodes as it was told, whatever a base file's queue allows.
    return keys.local.nodes if keys.batch_system == "local" else sys.maxsize


def _queue(keys: QueueKeys, nodes_limit: int) -> Queue:
    return Queue(
        name=keys.name,
        bins=tuple(
            WalltimeBin(
                nodes_min=item.nodes[0],
                nodes_max=min(item.nodes[1], nodes_limit),
                walltime_max_s=item.walltime,
            )
            for item in sorted(keys.bins, key=lambda item: item.nodes)
        ),
        queued_max=keys.queued_max,
        running_max=keys.running_max,
        total_max=keys.total_max,
        limits_per=keys.limits_per,
        preemptable=keys.preemptable,
        directives=tuple(keys.directives),
        whole_nodes=keys.whole_nodes,
    )


def _budgets(keys: SiteKeys) -> Budgets:
    budgets = keys.budgets
    return Budgets(
        query_interval_s=budgets.query_interval,
        queries_per_minute=budgets.queries_per_minute,
        submissions_per_hour=budgets.submissions_per_hour,
        jobs_in_flight=budgets.jobs_in_flight,
        node_hours_per_day=budgets.node_hours_per_day,
        command_timeout_s=budgets.command_timeout,
    )


def _runner(keys: SiteKeys) -> RunnerChoice:
    runner = keys.runner
    return RunnerChoice(
        python=runner.python,
        launcher=tuple(runner.launcher),
        transport=runner.transport,
        node_local_dir=runner.node_local_dir,
        drain_margin_s=runner.drain_margin,
        idle_exit_s=runner.idle_exit,
        environment=runner.environment,
        prologue=tuple(runner.prologue),
    )


def _planning(keys: SiteKeys) -> PlanningChoice:
    planning = keys.planning
    return PlanningChoice(
        nodes_max=planning.nodes_max,
        walltime_max_s=planning.walltime_max,
        walltime_min_s=planning.walltime_min,
        boot_margin_s=planning.boot_margin,
        default_expected_s=planning.default_expected,
        lookahead=planning.lookahead,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
