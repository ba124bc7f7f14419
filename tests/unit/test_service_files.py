"""What service managers are told of a daemon: units, crontab entries, and the environment."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.errors import ConfigurationError
from harvester.service.crontab import Table, merge, render_entry, render_script
from harvester.service.facts import Service, environment_of
from harvester.service.systemd import Manager, quote, render_unit
from harvester.site import Queue, Remote, Site, WalltimeBin
from payload_runner.protocol import NodeShape

TOP = Path(__file__).parents[2]
ODD = "blank 'single' \"double\" back\\slash $HOME %h 100%"


def service_for(batch_system: str = "slurm", **environment: str) -> Service:
    limits = WalltimeBin(nodes_min=1, nodes_max=4, walltime_max_s=3600.0)
    site = Site(
        name="perlmutter",
        batch_system=batch_system,
        node=NodeShape(gpus=4, cores=64),
        queues=(Queue(name="gpu", bins=(limits,)),),
        spool=Path("/scratch/alice/harvester"),
        state_dir=Path("/home/alice/.local/state/harvester/sites/perlmutter"),
        account="m1234",
    )
    return Service(
        site=site,
        named="perlmutter",
        harvester=("/opt/harvester/bin/harvester",),
        user="alice",
        environment=environment,
    )


def directives(unit: str) -> list[str]:
    return [line for line in unit.splitlines() if line and not line.startswith(("#", "["))]


# What systemd.exec(5) says implies NoNewPrivileges for a service that is not root's.
IMPLY = (
    "NoNewPrivileges",
    "SystemCall",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "PrivateDevices",
    "ProtectClock",
    "ProtectHostname",
    "ProtectKernel",
    "DynamicUser",
    "CapabilityBoundingSet",
)


@pytest.mark.parametrize("manager", Manager)
@pytest.mark.parametrize("batch_system", ["pbs", "lsf", "local"])
def test_set_user_id_helpers_keep_their_rights_where_commands_or_payloads_need_them(
    batch_system: str, manager: Manager
) -> None:
    unit = render_unit(service_for(batch_system), manager)
    assert [line for line in directives(unit) if line.startswith(IMPLY)] == []
    assert "set-user-id" in unit  # the file says why


@pytest.mark.parametrize("manager", Manager)
@pytest.mark.parametrize("batch_system", ["slurm", "gridengine", "flux"])
def test_daemon_is_sealed_where_nothing_needs_more(batch_system: str, manager: Manager) -> None:
    lines = directives(render_unit(service_for(batch_system), manager))
    assert {"NoNewPrivileges=yes", "MemoryMax=512M", "KillMode=mixed"} <= set(lines)


def test_jobs_of_the_local_batch_system_outlive_the_daemon_and_know_no_limit() -> None:
    unit = render_unit(service_for("local"), Manager.USER)
    lines = directives(unit)
    assert "KillMode=process" in lines
    limits = ("Memory", "CPU", "Tasks", "Nice", "Limit")
    assert [line for line in lines if line.startswith(limits)] == []


@pytest.mark.parametrize("manager", Manager)
def test_a_daemon_that_is_gone_shows_as_gone(manager: Manager) -> None:
    assert "RemainAfterExit" not in render_unit(service_for(), manager)


def test_user_is_named_only_where_the_machine_runs_the_unit() -> None:
    assert "User=alice" in directives(render_unit(service_for(), Manager.SYSTEM))
    assert not [
        line
        for line in directives(render_unit(service_for(), Manager.USER))
        if line.startswith(("User=", "Protect", "Private", "RequiresMountsFor"))
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/usr/bin/x", "/usr/bin/x"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, expected: str) -> None:
    assert quote(word) == expected


def test_dollar_signs_of_a_command_are_no_variables() -> None:
    odd = replace(service_for(), named="/sites/$HOME.yaml")
    (line,) = [
        line for line in directives(render_unit(odd, Manager.USER)) if line.startswith("ExecStart=")
    ]
    assert line.endswith('"/sites/$$HOME.yaml"')


@pytest.mark.parametrize(
    ("path", "manager"),
    [("harvester@.service", Manager.SYSTEM), ("user/harvester@.service", Manager.USER)],
)
def test_shipped_unit_says_what_an_installed_one_does(path: str, manager: Manager) -> None:
    own = ("Description=", "User=", "Environment=", "ExecStart=", "RequiresMountsFor=")

    def common(unit: str) -> list[str]:
        return [line for line in directives(unit) if not line.startswith(own)]

    shipped = (TOP / "scripts/systemd" / path).read_text()
    assert common(shipped) == common(render_unit(service_for(), manager))


@pytest.mark.parametrize("table", Table)
def test_shipped_entry_is_an_installed_one(table: Table) -> None:
    service = service_for()
    base = service.site.state_dir / table.value
    entry = render_entry(service, f"{base}.sh", f"{base}.log", table)
    shipped = (TOP / "scripts/systemd" / f"{table.value}.example").read_text()
    assert shipped.endswith(merge("", "perlmutter", entry))


def test_script_gives_the_daemon_exactly_the_environment_of_the_installation(
    tmp_path: Path,
) -> None:
    program = tmp_path / "with blank" / "harvester"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s|" "$ODD" "$@"\numask\n')
    program.chmod(0o755)
    service = replace(service_for(), harvester=(str(program),), environment={"ODD": ODD})
    script = tmp_path / "crontab.sh"
    script.write_text(render_script(service))

    done = subprocess.run(("/bin/sh", script), capture_output=True, text=True, check=True, env={})

    assert done.stdout.strip().split("|") == [ODD, "run", "--site", "perlmutter", "--once", "0077"]


def test_percent_sign_does_not_end_the_line_of_a_crontab() -> None:
    entry = render_entry(service_for(), "/a%b/x.sh", "/a%b/x.log", Table.CRON)
    assert r"/a\%b/x.sh >/a\%b/x.log 2>&1" in entry


def test_path_in_an_option_of_scrontab_is_a_path() -> None:
    entry = render_entry(service_for(), "/x.sh", "/a b/100%/x.log", Table.SCRON)
    assert "#SCRON '--output=/a b/100%%/x.log'\n" in entry


@pytest.mark.parametrize(
    "table",
    ["", "0 1 * * * mine\n", "# begin harvester x\nold\n# end harvester x\n0 1 * * * mine\n"],
)
def test_entry_is_entered_once_and_nobody_elses_is_touched(table: str) -> None:
    merged = merge(table, "x", "new\n")
    assert merged == merge(merged, "x", "new\n")
    kept = ["0 1 * * * mine"] if "mine" in table else []
    assert merged.splitlines() == [*kept, "# begin harvester x", "new", "# end harvester x"]


def test_entry_whose_end_somebody_removed_swallows_nothing() -> None:
    table = "# begin harvester x\nold\n0 1 * * * mine\n"
    for _ in range(2):
        table = merge(table, "x", "new\n")
    assert table.count("0 1 * * * mine") == 1
    assert table.count("new") == 1


def test_environment_keeps_what_the_site_and_its_commands_read() -> None:
    environ = {"PATH": "/bin", "HOME": "/home/a", "SLURM_CONF": "/c", "LS_COLORS": "x", "S": "/s"}
    asked_for: Mapping[str, str | None] = {"S": "/s", "HOME": "/home/a", "XDG_STATE_HOME": None}
    assert environment_of(environ, asked_for) == {"PATH": "/bin", "S": "/s", "SLURM_CONF": "/c"}


@pytest.mark.parametrize(
    ("name", "value"), [("PATH", "/bin\n/evil"), ("https_proxy", "http://me:secret@proxy:3128")]
)
def test_environment_that_must_not_be_written_down_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        environment_of({name: value}, {})
    assert "secret" not in str(caught.value)


def test_crontab_is_read_merged_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harvester.service.install import crontab_installation

    kept = tmp_path / "kept"
    kept.write_text("0 1 * * * mine\n")
    command = tmp_path / "bin" / "crontab"
    command.parent.mkdir()
    file = shlex.quote(str(kept))
    command.write_text(f"#!/bin/sh\ncase $1 in -l) cat {file};; -) cat >{file};; esac\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    service = service_for()
    service = replace(service, site=replace(service.site, state_dir=tmp_path / "state"))

    for _ in range(2):
        crontab_installation(service, Table.CRON).write()

    script = tmp_path / "state" / "crontab.sh"
    assert kept.read_text().splitlines()[0] == "0 1 * * * mine"
    assert kept.read_text().count(str(script)) == 1
    assert stat.S_IMODE(script.stat().st_mode) == 0o700


@pytest.mark.parametrize("manager", Manager)
def test_helpers_on_another_host_ask_for_no_rights_here(manager: Manager) -> None:
    service = service_for("pbs")
    site = replace(service.site, remote=Remote(host="login"))
    assert "NoNewPrivileges=yes" in directives(render_unit(replace(service, site=site), manager))


def test_unit_waits_for_no_directory_of_another_host() -> None:
    service = service_for()
    site = replace(service.site, remote=Remote(host="login"))
    unit = render_unit(replace(service, site=site), Manager.SYSTEM)
    assert f"RequiresMountsFor={site.state_dir}" in directives(unit)
