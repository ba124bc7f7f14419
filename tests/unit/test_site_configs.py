"""The shipped site files: complete in their sources, sound in their rules, exact in walltimes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvester import paths, wiring
from harvester.config import load_site
from harvester.config_compile import compile_site
from harvester.config_yaml import read_layer
from harvester.errors import ConfigurationError
from harvester.jobs import choose_queue
from harvester.site import Queue, Site, WalltimeBin

ENVIRON = {"HOME": "/home/u", "USER": "u", "SCRATCH": "/scratch/u", "PSCRATCH": "/pscratch/u"}
GENERIC = ("local", "slurm", "gridengine", "pbs", "lsf", "flux")
ALL = sorted(path.stem for path in paths.SHIPPED_SITES.glob("*.yaml"))
REAL = [name for name in ALL if name not in GENERIC]


@pytest.fixture(scope="module")
def compiled() -> Mapping[str, dict[str, Any]]:
    return {name: compile_site(f"{paths.SHIPPED_SITES}/{name}.yaml", ENVIRON) for name in ALL}


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    home = tmp_path_factory.mktemp("home")
    return {**ENVIRON, "HOME": str(home), "PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def sites(environ: Mapping[str, str]) -> Mapping[str, Site]:
    return {name: load_site(f"{paths.SHIPPED_SITES}/{name}.yaml", environ) for name in ALL}


def test_every_centre_and_every_template_is_shipped() -> None:
    assert set(GENERIC) <= set(ALL)
    assert REAL == [
        "aurora",
        "frontier",
        "juwels-booster",
        "karolina",
        "leonardo",
        "lumi-g",
        "marenostrum5",
        "perlmutter",
        "polaris",
        "summit",
        "traverse",
        "vega",
    ]


@pytest.mark.parametrize("name", REAL)
def test_every_value_of_a_real_site_says_where_it_comes_from(
    name: str, compiled: Mapping[str, dict[str, Any]]
) -> None:
    assert [item["key"] for item in compiled[name]["origins"] if item["source"] is None] == []


@pytest.mark.parametrize("name", REAL)
def test_every_document_named_as_source_has_a_date(
    name: str, compiled: Mapping[str, dict[str, Any]]
) -> None:
    without = [
        item["key"]
        for item in compiled[name]["origins"]
        if item["source"] not in ("unsourced", "chosen") and item["date"] is None
    ]
    assert without == []


@pytest.mark.parametrize("name", REAL)
def test_every_source_is_a_source_of_something(name: str) -> None:
    path = paths.SHIPPED_SITES / f"{name}.yaml"
    layer = read_layer(path, path.read_bytes())
    origins = compile_site(str(path), ENVIRON)["origins"]
    keys = [item["key"] for item in origins]
    for prefix in layer.values["sources"]:
        assert any(key == prefix or key.startswith(f"{prefix}.") for key in keys), prefix


@pytest.mark.parametrize("name", REAL)
def test_real_site_asks_politely_and_names_its_account_by_extension(
    name: str, compiled: Mapping[str, dict[str, Any]]
) -> None:
    site = compiled[name]["site"]
    assert site["budgets"]["query_interval_s"] >= 120
    assert site["account"] == ""


def test_shipped_site_without_account_is_not_driven(sites: Mapping[str, Site]) -> None:
    with pytest.raises(ConfigurationError, match="site frontier: account: expected your project"):
        wiring.make_daemon(sites["frontier"])


@pytest.mark.parametrize("place", ["user", "system"])
def test_override_in_users_or_system_directory_layers_over_a_shipped_site(
    place: str,
    environ: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "SYSTEM_CONFIGURATION", tmp_path / "etc/harvester")
    base = tmp_path / ("config/harvester" if place == "user" else "etc/harvester") / "sites"
    base.mkdir(parents=True)
    (base / "frontier.yaml").write_text(
        "extends: frontier\naccount: abc123\nnode: {cores: 48}\nbudgets: {jobs_in_flight: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    seen = {**environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    document = compile_site("frontier", seen)
    site, layers = document["site"], document["layers"]
    assert layers == [str(base / "frontier.yaml"), str(paths.SHIPPED_SITES / "frontier.yaml")]
    assert (site["account"], site["node"]["cores"], site["node"]["gpus"]) == ("abc123", 48, 8)
    origins = {item["key"]: item for item in document["origins"]}
    assert origins["node.gpus"]["source"] == "olcf-user-docs frontier_user_guide.rst"
    # What a file above replaces has lost the source of the file below.
    assert origins["node.cores"]["source"] is None
    assert origins["node.cores"]["file"] == str(base / "frontier.yaml")


def test_override_that_needs_an_account_and_has_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: frontier\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="expected your project's account"):
        compile_site("mine", ENVIRON)


def test_routed_queue_cannot_be_submitted_to_by_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "extends: polaris\naccount: p\nqueues: [{name: small, bins: [{nodes: 10, walltime: 1h}]}]"
    )
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="submit to prod, which routes jobs to it"):
        compile_site("mine", ENVIRON)


def test_memory_request_at_marenostrum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: marenostrum5\naccount: p\ndirectives: [--mem=64G]\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="asks for memory"):
        compile_site("mine", ENVIRON)


# --- walltimes ---


def _clock(text: str) -> int:
    """Minutes of ``[D-]HH:MM:SS`` as the manual pages define it."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    assert found, text
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    assert seconds == 0
    return (days * 24 + hours) * 60 + minutes


def _lsf(text: str) -> int:
    hours, _, minutes = text.rpartition(":")
    return int(hours or 0) * 60 + int(minutes)


def _flux(text: str) -> int:
    """Flux standard duration: a number and one of s, m, h, d; seconds without."""
    number, unit = re.fullmatch(r"(\d+)([smhd]?)", text).groups()  # type: ignore[union-attr]
    seconds = int(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    return seconds // 60


def _seconds_or_clock(text: str) -> int:
    return int(text) // 60 if text.isdigit() else _clock(text)


@dataclass(frozen=True)
class Dialect:
    """How a script says its walltime, and how its batch system reads that."""

    pattern: str
    minutes: Callable[[str], int]


DIALECTS = {
    "slurm": Dialect(r"--time=(\S+)", _clock),
    "pbs": Dialect(r"walltime=([^\s,]+)", _clock),
    "gridengine": Dialect(r"h_rt=([^\s,]+)", _seconds_or_clock),
    "lsf": Dialect(r"-W (\S+)", _lsf),
    "flux": Dialect(r"(?:-t|--time-limit)[= ]?(\S+)", _flux),
}


WIRED = sorted(set(DIALECTS) & set(wiring._BATCH_SYSTEMS))


def rendered_minutes(site: Site, queue: str, nodes: int, minutes: int) -> int:
    script, _ = wiring.render_job(site, nodes, minutes * 60.0, queue)
    dialect = DIALECTS[site.batch_system]
    (text,) = re.findall(dialect.pattern, script.partition("\n\n")[0])
    return dialect.minutes(text)


def rendered(sites: Mapping[str, Site]) -> list[tuple[Site, Queue, WalltimeBin]]:
    return [
        (site, queue, item)
        for site in sites.values()
        if site.batch_system in WIRED
        for queue in site.queues
        for item in queue.bins
    ]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_rendered_walltime_of_any_site_parses_back(
    sites: Mapping[str, Site], data: st.DataObject
) -> None:
    site, queue, item = data.draw(st.sampled_from(rendered(sites)))
    minutes = data.draw(st.integers(1, int(item.walltime_max_s // 60)))
    nodes = data.draw(st.integers(item.nodes_min, item.nodes_max))
    assert choose_queue(site, nodes, minutes * 60.0, queue.name)[0] == queue.name
    assert rendered_minutes(site, queue.name, nodes, minutes) == minutes


@pytest.mark.parametrize("system", WIRED)
def test_every_minute_of_a_week_parses_back(system: str, sites: Mapping[str, Site]) -> None:
    site = sites[system]
    wrong = [
        minutes
        for minutes in range(1, 7 * 24 * 60 + 1)
        if rendered_minutes(site, site.queues[0].name, 1, minutes) != minutes
    ]
    assert wrong == []


@pytest.mark.parametrize("name", REAL)
def test_walltime_beyond_a_bin_is_refused_with_the_bins_name(
    name: str, sites: Mapping[str, Site]
) -> None:
    site = sites[name]
    queue = site.queues[0]
    item = queue.bins[0]
    with pytest.raises(Exception, match=f"the bin of {item.nodes_min}-{item.nodes_max} nodes"):
        choose_queue(site, item.nodes_min, item.walltime_max_s + 60, queue.name)
