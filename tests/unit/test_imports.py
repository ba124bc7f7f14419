"""Imports point one way (DESIGN.md section 4), and heavy ones stay where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

#: A room may import itself and these; anything else of the project is an error. Longest name wins.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # values and small tools that anybody may use
    "harvester.errors": (),
    "harvester.clock": (),
    "harvester.quantities": (),
    "harvester.paths": (),
    "harvester.notify": (),
    "harvester.processes": (),
    "harvester.reading": (),
    "harvester.model": ("payload_runner.protocol",),
    "harvester.site": ("payload_runner.protocol",),
    "harvester.lifecycle": ("harvester.errors", "harvester.model"),
    "harvester.ids": ("harvester.model", "payload_runner.protocol"),
    # ports and what decides
    "harvester.batch.port": ("harvester.model",),
    "harvester.central.port": ("harvester.model",),
    "harvester.planning": (
        "harvester.model",
        "harvester.site",
        "harvester.quantities",
        "payload_runner.capacity",
        "payload_runner.protocol",
        "payload_runner.waiting",
        "payload_runner.walltime",
    ),
}
VALUES = (
    "harvester.errors",
    "harvester.clock",
    "harvester.quantities",
    "harvester.paths",
    "harvester.model",
    "harvester.site",
    "harvester.lifecycle",
    "harvester.ids",
)
EDGE = ("daemon", "store", "spool", "lease", "effects", "recover", "audit", "fold", "status")
SHARED_BY_ADAPTERS = ("adapter", "answers", "port", "commands", "script")
HEAVY = {
    "requests": ("harvester.central.http",),
    "yaml": ("harvester.config_yaml",),
    "pydantic": ("harvester.config_schema", "harvester.config_check", "harvester.steering"),
    "pydantic_core": ("harvester.config_schema", "harvester.config_check"),
    "sqlalchemy": ("harvester.steering",),
    "alembic": ("harvester.steering",),
    "fastapi": ("harvester.steering",),
    "starlette": ("harvester.steering",),
    "uvicorn": ("harvester.steering",),
    "jwt": ("harvester.steering.tokens",),
    "numpy": ("harvester.steering.samplers",),
    "scipy": ("harvester.steering.samplers",),
    "skopt": ("harvester.steering.samplers",),
    "nevergrad": ("harvester.steering.samplers",),
    "rich": ("harvester.views",),
    "textual": ("harvester.views",),
    "psutil": (),
    "watchdog": ("payload_runner.watching",),
    "mpi4py": ("payload_runner",),
}
IMPURE = frozenset({"os", "time", "random", "datetime", "socket", "subprocess", "threading", "io"})


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module; ``late`` when it runs inside a function."""

    importer: str
    imported: str
    line: int
    late: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement of the project, type checking only ones left out."""
    return tuple(
        found
        for package in ("harvester", "payload_runner")
        for path in sorted((TOP / package).rglob("*.py"))
        for found in _imports_of(path)
    )


def _imports_of(path: Path) -> Iterator[Import]:
    name = ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")
    yield from _walk(name, ast.parse(path.read_text()).body, late=False)


def _walk(name: str, body: list[ast.stmt], *, late: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, late)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            yield from _from(name, node, late=late)
        inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        children = [child for child in ast.walk(node) if isinstance(child, ast.stmt)][1:]
        direct = [child for child in children if _is_child(node, child)]
        yield from _walk(name, direct, late=inside)


def _is_child(node: ast.stmt, child: ast.stmt) -> bool:
    return any(child in getattr(holder, field, ()) for holder in _blocks(node) for field in _BODIES)


_BODIES = ("body", "orelse", "finalbody")


def _blocks(node: ast.stmt) -> list[ast.AST]:
    return [node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())]


def _from(name: str, node: ast.ImportFrom, *, late: bool) -> Iterator[Import]:
    module = node.module or ""
    for alias in node.names:
        # ``from harvester import paths`` imports the module harvester.paths.
        inner = f"{module}.{alias.name}"
        path = TOP / Path(*inner.split("."))
        is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
        yield Import(name, inner if is_module else module, node.lineno, late)


def is_in(module: str, rooms: tuple[str, ...] | list[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def ours(module: str) -> bool:
    return is_in(module, ("harvester", "payload_runner"))


def found(*rooms: str) -> list[Import]:
    return [item for item in imports() if is_in(item.importer, rooms)]


def offenders(items: list[Import], *forbidden: str) -> list[str]:
    return [str(item) for item in items if is_in(item.imported, forbidden)]


def test_the_walk_sees_late_and_plain_imports() -> None:
    wiring = {(item.imported, item.late) for item in found("harvester.wiring")}
    assert ("harvester.paths", False) in wiring
    assert ("harvester.batch.local", True) in wiring


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_lies_below_it(room: str) -> None:
    allowed = (room, "harvester.errors", *MAY_IMPORT[room])
    wrong = [item for item in found(room) if ours(item.imported)]
    # The package marker itself is always imported along.
    wrong = [item for item in wrong if not is_in(item.imported, allowed)]
    assert [str(item) for item in wrong if item.imported != "harvester"] == []


def test_payload_runner_needs_nothing_of_the_harvester() -> None:
    assert offenders(found("payload_runner"), "harvester") == []


def test_payload_runner_imports_only_the_standard_library_at_start() -> None:
    allowed = {*sys.stdlib_module_names, "payload_runner"}
    wrong = [
        str(item)
        for item in found("payload_runner")
        if item.imported.partition(".")[0] not in allowed
        and not (item.late and item.imported.partition(".")[0] in ("watchdog", "mpi4py"))
    ]
    assert wrong == []


def test_planning_and_placement_read_no_clock_file_or_chance() -> None:
    assert offenders(found("harvester.planning", "payload_runner.placement"), *IMPURE) == []


def test_steering_and_the_edge_do_not_know_each_other() -> None:
    edge = [f"harvester.{name}" for name in EDGE]
    assert offenders(found("harvester.steering"), *edge, "harvester.batch") == []
    assert offenders(found(*edge, "harvester.batch"), "harvester.steering") == []


def test_daemon_knows_ports_but_no_adapter() -> None:
    edge = [f"harvester.{name}" for name in EDGE]
    wrong = [
        str(item)
        for item in found(*edge)
        if is_in(item.imported, ("harvester.batch", "harvester.central"))
        and not item.imported.endswith(".port")
    ]
    assert wrong == []


def test_only_wiring_and_the_command_line_know_of_other_hosts() -> None:
    users = [item for item in imports() if is_in(item.imported, ("harvester.remote",))]
    knowing = ("harvester.remote", "harvester.wiring", "harvester.cli.connect")
    assert [str(item) for item in users if not is_in(item.importer, knowing)] == []


def test_only_wiring_and_the_command_line_know_of_bundles() -> None:
    users = [item for item in imports() if is_in(item.imported, ("harvester.bundles",))]
    knowing = ("harvester.bundles", "harvester.wiring", "harvester.cli.bundle")
    assert [str(item) for item in users if not is_in(item.importer, knowing)] == []


def test_only_wiring_knows_the_batch_systems() -> None:
    def adapter(module: str) -> str | None:
        parts = module.split(".")
        if parts[:2] != ["harvester", "batch"] or len(parts) < 3:
            return None
        return None if parts[2] in SHARED_BY_ADAPTERS else parts[2].partition("_")[0]

    wrong = [
        str(item)
        for item in imports()
        if adapter(item.imported)
        and adapter(item.imported) != adapter(item.importer)
        and item.importer != "harvester.wiring"
    ]
    assert wrong == []


def test_nothing_below_the_command_line_knows_it() -> None:
    others = [item for item in imports() if not is_in(item.importer, ("harvester.cli",))]
    entry = [item for item in others if item.importer != "harvester.__main__"]
    assert offenders(entry, "harvester.cli") == []
    users = [item for item in others if not is_in(item.importer, ("harvester.simulation",))]
    assert offenders(users, "harvester.wiring") == []


def test_views_only_look() -> None:
    views = found("harvester.views")
    acting = [f"harvester.{name}" for name in EDGE if name != "status"]
    assert offenders(views, *acting, "harvester.batch", "harvester.wiring") == []


def test_production_does_not_lean_on_the_simulation() -> None:
    others = [item for item in imports() if not is_in(item.importer, ("harvester.simulation",))]
    assert offenders(others, "harvester.simulation") == []


@pytest.mark.parametrize("module", HEAVY)
def test_heavy_module_stays_in_its_room(module: str) -> None:
    wrong = [
        str(item)
        for item in imports()
        if is_in(item.imported, (module,)) and not is_in(item.importer, HEAVY[module])
    ]
    assert wrong == []


def test_cycles_between_rooms_are_absent() -> None:
    edges: dict[str, set[str]] = {}
    for item in imports():
        if ours(item.imported) and not item.late:
            importer, imported = _room(item.importer), _room(item.imported)
            if importer != imported:
                edges.setdefault(importer, set()).add(imported)
    assert _cycle(edges) == []


def _room(module: str) -> str:
    parts = module.split(".")
    if module == "harvester.status":
        return "harvester.daemon"  # it publishes what only the daemon knows
    # Ports belong to their users; adapters are rooms of their own.
    return module if parts[-1] == "port" or len(parts) < 3 else ".".join(parts[:2])


def _cycle(edges: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in done:
            return []
        for below in sorted(edges.get(room, ())):
            if cycle := visit(below, [*path, room]):
                return cycle
        done.add(room)
        return []

    return next((cycle for room in sorted(edges) if (cycle := visit(room, []))), [])


def test_the_tunnel_takes_next_to_nothing_of_the_runner() -> None:
    """It lives beside an agent on every node, with MPI's memory on top."""
    code = "import sys, payload_runner.tunnel; print(*[m for m in sys.modules if 'runner.' in m])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"payload_runner.launched", "payload_runner.tunnel"}
