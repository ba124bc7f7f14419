"""Every option of phpo (panda-client 2.2.0), as one table, and how its values are read.

The command line makes its flags from this table and the service checks with it. An option is
implemented, accepted without effect (and the user is told why), or refused by name because this
release cannot honour it; nothing is silently ignored. PanDA wants outDS, evaluationContainer and
steeringExec; here evaluationExec and a search space are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from harvester.steering.problems import Problems, is_number

POINTS_MAX = 10_000_000
_TEXT_MAX = 100_000


class Standing(Enum):
    """What this release does with an option."""

    IMPLEMENTED = "implemented"
    ACCEPTED = "accepted"  #: without effect here; the note says why
    REFUSED = "refused"  #: not implemented yet; the note says what to do instead


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. ``kind`` is int, number, text, names (text or a list of texts) or flag."""

    name: str
    kind: str
    help: str
    default: Any = None  # None: not given, or as the help says
    least: float = 0
    standing: Standing = Standing.IMPLEMENTED
    note: str = ""


def _accepted(name: str, kind: str, help_text: str, note: str) -> Option:
    return Option(name=name, kind=kind, help=help_text, standing=Standing.ACCEPTED, note=note)


def _refused(name: str, help_text: str, note: str) -> Option:
    return Option(name=name, kind="text", help=help_text, standing=Standing.REFUSED, note=note)


_GRID_ONLY = "this project's service runs no grid jobs"
_STEERING = "not implemented yet; choose a sampler by name with the key 'sampler'"

OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(
            name="nParallelEvaluation",
            kind="int",
            default=1,
            least=1,
            help="Points evaluated at the same time, over all segments.",
        ),
        Option(
            name="maxPoints",
            kind="int",
            default=10,
            least=1,
            help="Points to evaluate (per segment).",
        ),
        Option(
            name="maxEvaluationJobs",
            kind="int",
            least=1,
            help="Attempts charged to points before the search ends; default 2 x maxPoints.",
        ),
        _accepted(
            "maxPointsPerEvaluationJob",
            "int",
            "Points that one evaluation job may take.",
            "an allocation takes as many points as fit into it",
        ),
        Option(
            name="nPointsPerIteration",
            kind="int",
            default=2,
            least=1,
            help="Points of one iteration. Without it and minUnevaluatedPoints, a new point is "
            "asked as soon as a result is told.",
        ),
        Option(
            name="minUnevaluatedPoints",
            kind="int",
            default=0,
            help="The next iteration starts when fewer points than this are unevaluated.",
        ),
        _refused("steeringContainer", "Image that generates points.", _STEERING),
        _refused("steeringExec", "Command that generates points.", _STEERING),
        Option(
            name="searchSpaceFile",
            kind="text",
            help="JSON file of the search space, relative to the configuration.",
        ),
        Option(
            name="evaluationContainer",
            kind="text",
            help="Image in which a point is evaluated; default: none, on the host.",
        ),
        Option(
            name="evaluationExec",
            kind="text",
            help="Shell command that evaluates one point; %SEGMENT_NAME is replaced.",
        ),
        Option(
            name="evaluationInput",
            kind="text",
            default="input.json",
            help="File from which the command reads its point.",
        ),
        Option(
            name="evaluationTrainingData",
            kind="text",
            default="input_ds.json",
            help="File that lists the training data.",
        ),
        Option(
            name="evaluationOutput",
            kind="text",
            default="output.json",
            help="File to which the command writes status, loss and message.",
        ),
        Option(
            name="evaluationMeta",
            kind="text",
            help="File of metadata that the command may write, under 1 MB.",
        ),
        Option(
            name="evaluationMetrics",
            kind="text",
            help="File of metrics that the command may write; it is archived.",
        ),
        _refused(
            "trainingDS",
            "Dataset with the training data.",
            "not implemented yet; let evaluationExec name the files itself, or list them per "
            "segment in segmentSpecFile",
        ),
        Option(
            name="checkPointToSave",
            kind="names",
            help="Checkpoint files and directories, comma-separated, in the working directory.",
        ),
        Option(
            name="checkPointToLoad",
            kind="text",
            help="Name under which the command finds the saved archive; default: unpacked.",
        ),
        Option(
            name="checkPointInterval",
            kind="number",
            default=5,
            help="Minutes between looks at the checkpoint files; may be a fraction.",
        ),
        Option(
            name="segmentSpecFile",
            kind="text",
            help='JSON file [{"name": ..., "files": [...]}, ...]; one search per segment.',
        ),
        Option(name="outDS", kind="text", help="Name of the search; default: of its directory."),
        Option(
            name="site",
            kind="names",
            help="Sites that may evaluate, comma-separated; default: any.",
        ),
        Option(name="includedSite", kind="names", help="More sites that may evaluate."),
        _accepted("architecture", "text", "Platform of the grid job.", _GRID_ONLY),
        _accepted("alrbArgs", "text", "Options of the grid's container set-up.", _GRID_ONLY),
        _accepted("workingGroup", "text", "Group that the search is charged to.", _GRID_ONLY),
        _accepted("voms", "text", "VOMS roles of the grid proxy.", _GRID_ONLY),
        _accepted("official", "flag", "Official production.", _GRID_ONLY),
        _accepted("intrSrv", "flag", "Use PanDA's integration server.", _GRID_ONLY),
        _accepted("noEmail", "flag", "Send no mail.", "no mail is ever sent"),
        _accepted("python3", "flag", "Use Python 3.", "there is no other"),
        _accepted("verbose", "flag", "Say more.", "the command line's own -v says more"),
        _accepted("version", "flag", "Show the version.", "use --version"),
        Option(name="noSubmit", kind="flag", help="Only check and show."),
        Option(
            name="dumpJson",
            kind="text",
            help="Write the outcome to this file: returnCode, jediTaskID (null if not submitted).",
        ),
        _accepted("loadJson", "text", "Read options from a file.", "it is being read"),
    )
}


def read_options(problems: Problems, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every option with its value or default; null and empty text count as not given.

    Keys that are no options are left to the caller. A wrong value reads as its default, with the
    problem noted.
    """
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        given = config.get(name)
        values[name] = option.default
        if given is None or given == "":  # what phpo writes for an option nobody gave
            continue
        if option.standing is Standing.REFUSED:
            problems.add(name, given, option.note)
        elif _check(problems, option, given):
            values[name] = _names(given) if option.kind == "names" else given
    _check_together(problems, config, values)
    return values


def notes(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each given option that has no effect here."""
    return [
        f"{option.name} has no effect here: {option.note}"
        for option in OPTIONS.values()
        if option.standing is Standing.ACCEPTED
        # loadJson names the file that is being read: nobody needs to hear of it.
        and option.name != "loadJson"
        and config.get(option.name) not in (None, False, "")
    ]


def _check(problems: Problems, option: Option, value: Any) -> bool:
    expected = _EXPECTED[option.kind].format(least=option.least, most=POINTS_MAX)
    if _fits(option, value):
        return True
    problems.add(option.name, value, f"expected {expected}")
    return False


_EXPECTED = {
    "int": "a whole number from {least} to {most}",
    "number": "a number above 0",
    "text": "a text",
    "names": "a text or a list of texts",
    "flag": "true or false",
}


def _fits(option: Option, value: Any) -> bool:
    if option.kind == "flag":
        return isinstance(value, bool)
    if option.kind == "int":
        return is_number(value) and isinstance(value, int) and option.least <= value <= POINTS_MAX
    if option.kind == "number":
        return is_number(value) and 0 < value <= POINTS_MAX
    if option.kind == "names":
        return isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))
    return _is_text(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and 0 < len(value) <= _TEXT_MAX


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def _check_together(
    problems: Problems, config: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    least, per_iteration = values["minUnevaluatedPoints"], values["nPointsPerIteration"]
    if least >= per_iteration:
        problems.add(
            "minUnevaluatedPoints",
            least,
            f"expected less than nPointsPerIteration ({per_iteration}): an iteration brings "
            "nPointsPerIteration - minUnevaluatedPoints new points",
        )
    if config.get("evaluationExec") in (None, ""):
        problems.missing("evaluationExec", "give the command that evaluates one point")
    elif values["evaluationExec"] is not None and not values["evaluationExec"].strip():
        problems.add("evaluationExec", values["evaluationExec"], "expected a command")
