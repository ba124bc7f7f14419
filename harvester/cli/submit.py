"""``harvester task submit``: phpo's options, and this project's sections, to the central service.

The flags come from the same table that checks the configuration file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.options import FILE, central_options, task_client, wrong_argument
from harvester.cli.output import json_option, note, print_json, print_text
from harvester.errors import ConfigurationError, InputError, Problem
from harvester.site import Site
from harvester.steering.options import OPTIONS, Option, Standing
from harvester.steering.problems import shown
from harvester.steering.taskfile import TaskDefinition, load_task

if TYPE_CHECKING:
    from harvester.planning.forecast import Forecast

# Ours under the same name, or the command line's own under another.
_OWN = frozenset({"loadJson", "site", "noSubmit", "version"})
# phpo's short forms.
_SHORT = {"python3": "-3", "verbose": "-v"}
_TYPES: Mapping[str, click.ParamType[Any]] = {"int": click.INT, "number": click.FLOAT}


def _flag(option: Option) -> click.Option:
    text = option.help
    if option.standing is not Standing.IMPLEMENTED:
        text += f"  ({option.note})"
    if option.default is not None:
        text += f"  [default: {option.default}]"
    if option.kind == "flag":
        names = [option.name, f"--{option.name}"]
        names += [_SHORT[option.name]] if option.name in _SHORT else []
        return click.Option(names, is_flag=True, help=text)
    return click.Option(
        [option.name, f"--{option.name}"],
        type=_TYPES.get(option.kind, click.STRING),
        help=text,
        hidden=option.standing is Standing.REFUSED,
    )


@click.command(
    params=[_flag(option) for option in OPTIONS.values() if option.name not in _OWN],
    epilog="With --loadJson the file wins over the command line, as with phpo.",
)
@click.option("--loadJson", "load_json", type=FILE, metavar="FILE", help="Read options from FILE.")
@click.option("--site", metavar="NAMES", help="Sites that may evaluate; also checks against them.")
@click.option("--dry-run", "--noSubmit", "dry_run", is_flag=True, help="Only check and show.")
@central_options
@json_option
def submit(
    load_json: Path | None,
    site: str | None,
    dry_run: bool,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check a search and submit it.

    The files *.json *.sh *.py *.yaml below the configuration's directory (or, without one, below
    the current directory) travel to the working directory of every evaluation.
    """
    sites = _sites(site, must_exist=dry_run)
    definition = _definition(load_json, options, sites)
    remarks = [*_outvoted(definition, load_json, options, sites), *_linked(load_json)]
    remarks += _remarks(definition, sites, load_json)
    forecasts = _forecasts(definition, sites)
    for found in forecasts:
        note(found.sentence)
    remarks += [remark for found in forecasts for remark in found.warnings]
    for remark in remarks:
        note(f"warning: {remark}")
    outcome = _outcome_file(definition)
    if dry_run or definition.config.get("noSubmit"):
        _show(definition, remarks, forecasts, as_json)
        _write_outcome(outcome, None)
        return
    directory = _directory(load_json)
    reply = task_client(central, token_file).submit(
        definition.to_document(), _travelling(definition, directory)
    )
    _write_outcome(outcome, reply.task)
    for remark in set(reply.warnings) - set(remarks):
        note(f"warning: {remark}")
    if as_json:
        costs = _costs(forecasts)
        print_json({"task": reply.task, "name": definition.name, "warnings": remarks, **costs})
    else:
        print_text(f"Submitted {definition.name!r} as task {reply.task}.")


def _directory(load_json: Path | None) -> Path:
    return Path.cwd() if load_json is None else load_json.parent


def _linked(load_json: Path | None) -> list[str]:
    """Links to directories may be meant (data) or not (a package): people are told."""
    from harvester.steering.travelling import linked_directories

    return [
        f"{name} is a link to a directory: no file below it travels"
        for name in linked_directories(_directory(load_json))
    ]


def _outvoted(
    definition: TaskDefinition,
    load_json: Path | None,
    options: Mapping[str, Any],
    sites: Mapping[str, Site | None],
) -> list[str]:
    """What the command line said and the file, which wins, says otherwise."""
    if load_json is None:
        return []
    return [
        f"{name} is {shown(definition.config[name])} in {load_json.name} and {shown(value)} on the "
        "command line: the file wins, as with phpo"
        for name, value in _given(options, sites).items()
        if definition.config[name] != value
    ]


def _outcome_file(definition: TaskDefinition) -> Path | None:
    """Where phpo's dumpJson wants the outcome; told before anything is submitted if it cannot be.

    Raises:
        InputError: there is no such directory.
    """
    given = definition.config.get("dumpJson")
    if not given:
        return None
    path = Path(given)
    if path.is_dir() or not path.parent.is_dir():
        expected = "expected the name of a file in a directory that exists"
        raise InputError(Problem("task options", "dumpJson", repr(given), expected))
    return path


def _write_outcome(path: Path | None, task: str | None) -> None:
    if path is not None:
        number = int(task) if task is not None and task.isdecimal() else None
        path.write_text(json.dumps({"returnCode": 0, "jediTaskID": number, "task": task}) + "\n")


def _definition(
    load_json: Path | None, options: Mapping[str, Any], sites: Mapping[str, Site | None]
) -> TaskDefinition:
    return load_task(load_json, _given(options, sites), _directory(load_json))


def _given(options: Mapping[str, Any], sites: Mapping[str, Site | None]) -> dict[str, Any]:
    """What the command line said, by the names of the options."""
    given = {name: value for name, value in options.items() if value not in (None, False, "")}
    return {**given, "site": ",".join(sites)} if sites else given


def _sites(names: str | None, *, must_exist: bool) -> dict[str, Site | None]:
    """The named sites; None for one whose file is not here (it may be on its own login node)."""
    from harvester.config import load_site

    if names is not None and not names.replace(",", "").strip():
        raise wrong_argument("--site", names, "expected names of sites, separated by commas")
    found: dict[str, Site | None] = {}
    for name in (names or "").split(","):
        if not name.strip():
            continue
        try:
            site = load_site(name.strip(), os.environ)
            found[site.name] = site
        except ConfigurationError as error:
            # Only the search for the name may fail: a wrong file is worth knowing.
            if must_exist or error.problems[0].file != "site":
                raise
            note(f"warning: site {name.strip()} is not known here, so nothing is checked with it")
            found[name.strip()] = None
    return found


def _remarks(
    definition: TaskDefinition, sites: Mapping[str, Site | None], load_json: Path | None
) -> list[str]:
    from harvester.steering.advice import check_against_site, warnings

    known = [site for site in sites.values() if site is not None]
    for site in known:
        file = "command line" if load_json is None else load_json.name
        check_against_site(definition, site, file=file)
    found = [remark for site in known for remark in warnings(definition, site)]
    found += [remark for site in known for remark in _missing_image(definition, site)]
    return list(dict.fromkeys(found or warnings(definition)))


def _missing_image(definition: TaskDefinition, site: Site) -> list[str]:
    """Whether the image, as far as this machine can see, has still to be brought to the site."""
    from payload_runner.images import BadContainer, resolve_image

    container, runtime = definition.container, site.container_runtime
    if container is None or runtime == "none":
        return []
    try:
        resolve_image(
            container.image, runtime, site.image_dir, os.path.exists, site.container_images
        )
    except BadContainer as error:
        return [f"site {site.name}: {error}"]
    return []


def _forecasts(definition: TaskDefinition, sites: Mapping[str, Site | None]) -> list[Forecast]:
    """What the search will cost at each site whose file is here."""
    from harvester.planning.forecast import forecast

    payload = definition.payload
    found = [
        forecast(
            site,
            shape=payload.shape,
            points=definition.total_points,
            expected_s=payload.expected_s,
            budget=payload.node_hours,
        )
        for site in sites.values()
        if site is not None
    ]
    return [item for item in found if item is not None]


def _costs(forecasts: list[Forecast]) -> dict[str, Any]:
    return {"node_hours": {found.site: found.node_hours for found in forecasts}}


def _travelling(definition: TaskDefinition, directory: Path) -> dict[str, Path]:
    from harvester.steering.travelling import input_paths

    return input_paths(definition.files, directory)


def _show(
    definition: TaskDefinition, remarks: list[str], forecasts: list[Forecast], as_json: bool
) -> None:
    from harvester.steering.payloadspec import payload_specs
    from payload_runner.protocol import to_fields

    payloads = [to_fields(spec) for spec in payload_specs(definition).values()]
    if as_json:
        document = definition.to_document()
        print_json(
            {
                "dry_run": True,
                "task": document,
                "payloads": payloads,
                "warnings": remarks,
                **_costs(forecasts),
            }
        )
    else:
        print_text(_screen(definition))


def _screen(definition: TaskDefinition) -> str:
    from harvester.views.submission import submission_screen

    return submission_screen(definition)
