"""A task, checked, and the task document that it is read from (docs/native-protocol.md).

The command line and the service read the document with this same code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harvester.steering.evaluation_script import check_script
from harvester.steering.options import OPTIONS, read_options
from harvester.steering.payload_section import PayloadSection, read_payload
from harvester.steering.problems import PART_MAX_BYTES, Problems, is_clean_json, json_bytes
from harvester.steering.samplers.registry import SamplerChoice, read_sampler
from harvester.steering.segments import Segment, read_segments, read_spaces
from harvester.steering.shell_syntax import syntax_fault
from harvester.steering.space import SearchSpace
from harvester.steering.travelling import is_inside, read_files
from payload_runner.protocol import METRICS_LINES_NAME, CheckpointRule, Container, InputFile

OWN_KEYS = ("payload", "sampler", "searchSpace", "seed")
SEED_MAX = 2**63 - 1
NAMED_FILES: Mapping[str, str] = {
    "evaluationInput": "input_name",
    "evaluationTrainingData": "training_name",
    "evaluationOutput": "output_name",
    "evaluationMeta": "meta_name",
    "evaluationMetrics": "metrics_name",
}
_DOCUMENT_KEYS = (
    "name",
    "config",
    "search_space",
    "segments",
    "payload",
    "sampler",
    "seed",
    "files",
    "site",
)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What errors call the parts of a task."""

    config: str = "task document"
    space: str = "task document: search_space"
    segments: str = "task document: segments"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefinition:
    """A task, checked. ``document`` is the JSON form it was read from."""

    name: str
    command: str
    spaces: tuple[SearchSpace, ...]  # one per segment, or the only one
    segments: tuple[Segment, ...] = ()
    payload: PayloadSection = field(default_factory=PayloadSection)
    sampler: SamplerChoice = field(default_factory=SamplerChoice)
    seed: int | None = None
    files: tuple[InputFile, ...] = ()
    sites: tuple[str, ...] = ()  # empty: any

    parallel: int = 1  # points evaluated at a time, over all segments
    max_points: int = 10  # of each segment
    max_evaluation_jobs: int = 20  # charged attempts, of each segment; see charge_limit
    points_per_iteration: int | None = None  # None: ask as soon as a result is told
    min_unevaluated_points: int = 0

    input_name: str = "input.json"
    training_name: str = "input_ds.json"
    output_name: str = "output.json"
    meta_name: str | None = None
    metrics_name: str | None = None
    checkpoint: CheckpointRule | None = None
    container: Container | None = None

    config: Mapping[str, Any] = field(default_factory=dict)  # phpo's keys, as given
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total_points(self) -> int:
        """Points of the whole task; phpo multiplies maxPoints by the segments."""
        return self.max_points * len(self.spaces)

    @property
    def charge_limit(self) -> int:
        """Charged attempts that end the whole task; multiplied likewise."""
        return self.max_evaluation_jobs * len(self.spaces)

    @classmethod
    def from_document(
        cls, document: Any, labels: Labels | None = None, *, all_files: bool = True
    ) -> TaskDefinition:
        """The task of a document that came over the wire (or that ``load_task`` made).

        Args:
            document: the JSON object.
            labels: what errors call its parts.
            all_files: whether it lists every file that should travel; where some could not be
                taken, which has been told, none is missed.

        Raises:
            InputError: everything that is wrong with it.
        """
        return _from_document(document, labels or Labels(), all_files)

    def to_document(self) -> dict[str, Any]:
        """The task document; ``from_document`` of it is equal to this definition."""
        return copy.deepcopy(dict(self.document))


def _from_document(document: Any, labels: Labels, all_files: bool) -> TaskDefinition:
    problems = Problems(labels.config)
    if not isinstance(document, Mapping) or not is_clean_json(document, depth=32):
        problems.tell("", "expected a JSON object with finite numbers, not nested too deeply")
        problems.check()
    problems.unknown_keys("", map(str, document), _DOCUMENT_KEYS)
    config = document.get("config")
    if not isinstance(config, Mapping):
        problems.add("config", config, "expected an object of options")
        config = {}
    _check_keys(problems, config)
    definition = _read(problems, labels, document, config, all_files)
    problems.check()
    if all_files:
        _check_size(problems, definition)
    problems.check()
    return definition


def _read(
    problems: Problems,
    labels: Labels,
    document: Mapping[str, Any],
    config: Mapping[str, Any],
    all_files: bool,
) -> TaskDefinition:
    options = read_options(problems, config)
    segment_problems, space_problems = Problems(labels.segments), Problems(labels.space)
    segments = read_segments(segment_problems, document.get("segments"))
    spaces: tuple[SearchSpace, ...] = ()
    if not segment_problems.found:
        spaces = read_spaces(space_problems, document.get("search_space"), segments)
    file_problems = Problems(labels.config)
    files = read_files(file_problems, document.get("files", []))
    problems.extend(file_problems.found)
    all_files = all_files and not file_problems.found
    names = _file_names(problems, options)
    command = options["evaluationExec"] or ""
    if _check_command(problems, command, document.get("segments") is not None) and all_files:
        in_container = bool(options["evaluationContainer"])
        check_script(problems, command, files, in_container=in_container)
    _refuse_written(problems, files, names)
    _check_seed(problems, document.get("seed"))
    definition = TaskDefinition(
        name=_name(problems, document.get("name")),
        command=command,
        spaces=spaces,
        segments=segments,
        payload=read_payload(problems, document.get("payload")),
        sampler=read_sampler(problems, document.get("sampler")),
        seed=document.get("seed"),
        files=files,
        sites=_read_sites(problems, document.get("site")),
        parallel=options["nParallelEvaluation"],
        max_points=options["maxPoints"],
        max_evaluation_jobs=options["maxEvaluationJobs"] or 2 * options["maxPoints"],
        points_per_iteration=_iteration(config, options),
        min_unevaluated_points=options["minUnevaluatedPoints"],
        checkpoint=_checkpoint(problems, config, options, _contract_names(names), files),
        container=_container(problems, options),
        config=config,
        document=document,
        **names,
    )
    problems.extend(segment_problems.found)
    problems.extend(space_problems.found)
    return definition


def _check_keys(problems: Problems, config: Mapping[str, Any]) -> None:
    for key in config:
        if str(key) not in OPTIONS:
            problems.unknown_keys("", [str(key)], (*OPTIONS, *OWN_KEYS))


def _name(problems: Problems, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.add("name", name, "expected a text of 1 to 200 printable characters")
        return ""
    return name


def _check_size(problems: Problems, definition: TaskDefinition) -> None:
    """Refuse what would not fit one record of the file protocol, naming the largest part."""
    # Late: payload specs are made of definitions.
    from harvester.steering.payloadspec import payload_specs

    largest = max(payload_specs(definition).values(), key=json_bytes)
    size = json_bytes(largest)
    if size <= PART_MAX_BYTES:
        return
    parts = {
        "evaluationExec": largest.command,
        "files": largest.files,
        "segments": largest.training_files,
        "payload.environment": largest.environment,
    }
    key = max(parts, key=lambda name: json_bytes(parts[name]))
    problems.tell(
        key,
        f"makes the description of one evaluation (command, files' names and hashes, training "
        f"files, environment) {size} bytes long; expected at most {PART_MAX_BYTES}: pack many "
        "small files into one, or move what is long into a file",
    )


def _check_seed(problems: Problems, seed: Any) -> None:
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX:
        problems.add("seed", seed, "expected a whole number from 0 to 2**63 - 1")


def _read_sites(problems: Problems, sites: Any) -> tuple[str, ...]:
    if sites is None:
        return ()
    if not isinstance(sites, list) or not all(
        isinstance(site, str) and _SITE.fullmatch(site) for site in sites
    ):
        problems.add("site", sites, "expected a list of sites' names")
        return ()
    return tuple(sites)


def _iteration(config: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    given = ("nPointsPerIteration", "minUnevaluatedPoints")
    if all(config.get(key) is None for key in given):
        return None
    return int(options["nPointsPerIteration"])


def _file_names(problems: Problems, options: Mapping[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    taken = {METRICS_LINES_NAME: "the metrics lines"}
    for key, attribute in NAMED_FILES.items():
        name = options[key]
        names[attribute] = name
        if name is None:
            continue
        if not is_inside(name):
            problems.add(key, name, "expected a file name inside the working directory")
        elif name in taken:
            problems.add(key, name, f"is the name of {taken[name]} already")
        else:
            taken[name] = key
    return names


def _check_command(problems: Problems, command: str, has_segments: bool) -> bool:
    fault = syntax_fault(command)
    if fault is not None:
        problems.add("evaluationExec", command, f"is no command that a shell can parse: {fault}")
    elif "%SEGMENT_NAME" in command and not has_segments:
        problems.add("evaluationExec", command, "%SEGMENT_NAME needs a segmentSpecFile")
    return fault is None


def _refuse_written(
    problems: Problems, files: tuple[InputFile, ...], names: Mapping[str, Any]
) -> None:
    for file in files:
        if file.name in {METRICS_LINES_NAME, *names.values()}:
            problems.tell("files", f"{file.name} is written by the payload and cannot travel")


def _checkpoint(
    problems: Problems,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
    names: Mapping[str, str],
    files: tuple[InputFile, ...],
) -> CheckpointRule | None:
    paths, load_as = options["checkPointToSave"], options["checkPointToLoad"]
    if not paths:
        for key in ("checkPointToLoad", "checkPointInterval"):
            if config.get(key) is not None:
                problems.add(key, config[key], "needs checkPointToSave")
        return None
    clean = tuple(path.rstrip("/").removeprefix("./") for path in paths)
    for path, given in zip(clean, paths, strict=True):
        if not is_inside(path):
            expected = "leaves the working directory; expected a relative path without '..'"
            problems.add("checkPointToSave", given, expected)
        _refuse_own_files(problems, "checkPointToSave", path, names, files)
    if load_as is not None and not is_inside(load_as):
        expected = "leaves the working directory; expected a plain file name"
        problems.add("checkPointToLoad", load_as, expected)
    elif load_as is not None:
        _refuse_own_files(problems, "checkPointToLoad", load_as, names, files)
    interval_s = float(options["checkPointInterval"]) * 60
    return CheckpointRule(paths=clean, load_as=load_as, interval_s=interval_s)


def _contract_names(names: Mapping[str, Any]) -> dict[str, str]:
    """What every attempt is given or judged by, by file name."""
    found = {names[attribute]: key for key, attribute in NAMED_FILES.items() if names[attribute]}
    return {METRICS_LINES_NAME: "file of the metrics lines", **found}


def _refuse_own_files(
    problems: Problems, key: str, path: str, names: Mapping[str, str], files: tuple[InputFile, ...]
) -> None:
    """An old result restored in front of the next attempt would count as that attempt's own.

    Files that travel are refused by their very name only: below a directory of checkpoints they
    do no harm, and a training that was tried there leaves some.
    """
    found = [
        f"{name} is the {what}" for name, what in names.items() if f"{name}/".startswith(f"{path}/")
    ]
    found += [f"{path} is a travelling file" for file in files if file.name == path]
    for what in found:
        expected = f"{what} of every attempt; expected files that hold the training's state alone"
        problems.add(key, path, expected)


def _container(problems: Problems, options: Mapping[str, Any]) -> Container | None:
    image = options["evaluationContainer"]
    if image is None:
        return None
    if any(character.isspace() for character in image) or image.startswith("-"):
        problems.add("evaluationContainer", image, "expected an image such as docker://name:tag")
    return Container(image=image)
