"""The images of one site: brings them there, and says which there are.

A file or directory is made beside its place and renamed when it is whole and checked. Commands of
runtimes talk to the person directly, on standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harvester.errors import ConfigurationError, InputError, Problem, Refused
from harvester.images import commands
from harvester.images.archives import ImageConfig, Kind, kind_of, unpack
from harvester.images.checking import check_root
from harvester.images.rootfs import RootFs
from harvester.site import Site
from payload_runner.commits import Broken
from payload_runner.images import AS_FILES, BY_NAME, file_name, plain_name
from payload_runner.protocol import CONTAINER_WORKDIR

_ENVIRONMENT = "ch/environment"  # Charliecloud's place for it; the payload runner reads it too
Run = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that a site has. ``image`` "": nobody has noted what it is called."""

    image: str
    place: str
    brought: float | None = None  # seconds since the epoch
    missing: bool = False  # the site file names it, but it is not there


class Shelf:
    """The images of ``site``. ``machine``: as ``uname -m`` says it."""

    def __init__(self, site: Site, machine: str, run: Run, environ: Mapping[str, str]) -> None:
        """Raises ConfigurationError where the site file does not say where images go."""
        self._site = site
        self._runtime = site.container_runtime
        self._machine = machine
        self._run = run
        self._environ = environ
        if self._runtime == "none":
            raise _unset(site, "containers.runtime", "the container runtime of its nodes")
        if self._runtime not in BY_NAME and site.image_dir is None:
            raise _unset(site, "containers.image_dir", "the directory for images")

    # --- bringing ---

    def pull(self, image: str, *, replace: bool = False) -> str:
        """Fetch an image from its registry; returns where it lies now, or its name.

        Raises:
            Refused: it is there already, or a command failed.
            InputError: what came is no image that could run here.
            OSError: no space, no permission.
        """
        if self._runtime in BY_NAME:
            self._run(commands.pull(self._runtime, image))
            return plain_name(image)
        if self._runtime in AS_FILES:
            with self._making(image, ".sif", replace) as part:
                self._run(commands.pull_sif(self._runtime, image, str(part)))
                _expect_sif(part)
            return str(self._place(image, ".sif"))
        with self._scratch(image) as packed:
            for argv in self._fetcher(image, packed):
                self._run(argv)
            return self._unpack(packed, image, replace)

    def import_file(self, source: Path, image: str, *, replace: bool = False) -> str:
        """Bring an image that lies in a file or directory; as ``pull`` otherwise."""
        with _blaming(source):
            kind = kind_of(source)
        if self._runtime in AS_FILES:
            return self._import_sif(source, kind, image, replace)
        if kind is Kind.SIF:
            raise _no_way(source, f"a SIF file is for apptainer, this site has {self._runtime}")
        if self._runtime not in BY_NAME:
            return self._unpack(source, image, replace)
        if self._runtime == "shifter":
            raise _no_way(source, "shifter takes images from registries only; use `image pull`")
        return self._load(source, kind, image)

    def _import_sif(self, source: Path, kind: Kind, image: str, replace: bool) -> str:
        with self._making(image, ".sif", replace) as part:
            if kind is Kind.SIF:
                shutil.copyfile(source, part)
            elif kind is Kind.ROOT:
                with self._scratch(image) as root:
                    self._fill(source, kind, root)
                    self._run(commands.build_sif(self._runtime, str(root), kind, str(part)))
            else:
                self._run(commands.build_sif(self._runtime, str(source), kind, str(part)))
            _expect_sif(part)
        return str(self._place(image, ".sif"))

    def _load(self, source: Path, kind: Kind, image: str) -> str:
        if kind is Kind.DIRECTORY:
            raise _no_way(source, "expected a file; pack it with `tar -C DIR -cf FILE .`")
        told = self._run(commands.load(self._runtime, str(source), kind)).split()
        if not told:
            raise Refused(f"{self._runtime} did not say what it loaded from {source}")
        for argv in commands.name_it(self._runtime, told[-1], image):
            self._run(argv)
        return plain_name(image)

    def _unpack(self, source: Path, image: str, replace: bool) -> str:
        with self._making(image, "", replace) as part, _blaming(source):
            kind = kind_of(source)
            config = self._fill(source, kind, part)
            root = RootFs(part)
            check_root(root, self._machine)
            # Read-only images need the place where the working directory is bound.
            root.make_directory(CONTAINER_WORKDIR)
            if config.environment:
                root.make_directory("ch")
                Path(root.place(_ENVIRONMENT)).write_text("\n".join([*config.environment, ""]))
        return str(self._place(image, ""))

    def _fill(self, source: Path, kind: Kind, target: Path) -> ImageConfig:
        if kind is Kind.DIRECTORY:
            shutil.copytree(source, target, symlinks=True, ignore=_special_files)
            return ImageConfig()
        target.mkdir()
        return unpack(source, kind, RootFs(target), self._machine)

    def _fetcher(self, image: str, packed: Path) -> tuple[tuple[str, ...], ...]:
        scheme = image.partition("://")[0] if "://" in image else "docker"
        if scheme != "docker":
            expected = f"expected docker://NAME; {self._runtime} cannot fetch from {scheme}://"
            raise InputError(Problem("command line", "IMAGE", repr(image), expected))
        ways = commands.fetchers(image, str(packed))
        for way in ways:
            if shutil.which(way[0][0], path=self._environ.get("PATH")):
                return way
        programs = ", ".join(way[0][0] for way in ways)
        raise Refused(
            f"none of {programs} is on PATH to fetch {image} with; save it elsewhere as an archive "
            "and use `harvester image import`"
        )

    # --- looking ---

    def listed(self) -> tuple[Listed, ...]:
        """The images that the site has, by name; those of its own table first."""
        return (*self._from_table(), *self._from_directory())

    def native_listing(self) -> str:
        """The list of a runtime that keeps images itself; "" for the others."""
        return self._run(commands.listing(self._runtime)) if self._runtime in BY_NAME else ""

    def _from_table(self) -> Iterator[Listed]:
        for image, place in sorted(self._site.container_images.items()):
            gone = place.startswith("/") and not os.path.exists(place)
            yield Listed(image, place, missing=gone)

    def _from_directory(self) -> Iterator[Listed]:
        if self._runtime in BY_NAME or not self._directory.is_dir():
            return
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(".") or not (path.is_dir() or path.suffix == ".sif"):
                continue
            note = _read_note(self._note(path))
            yield Listed(str(note.get("image", "")), str(path), _number(note.get("brought")))

    # --- places ---

    @property
    def _directory(self) -> Path:
        assert self._site.image_dir is not None
        return Path(self._site.image_dir)

    def _place(self, image: str, suffix: str) -> Path:
        return self._directory / f"{file_name(image)}{suffix}"

    def _note(self, place: Path) -> Path:
        return place.with_name(f".{place.name}.json")

    @contextlib.contextmanager
    def _making(self, image: str, suffix: str, replace: bool) -> Iterator[Path]:
        """A place beside the image's, which takes it when the block ends well."""
        self._directory.mkdir(exist_ok=True)
        target = self._place(image, suffix)
        if os.path.lexists(target) and not replace:
            raise Refused(f"{target} is there already; --force replaces it")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            yield part
            if os.path.lexists(target):
                old = target.with_name(f".{target.name}.{os.getpid()}.old")
                target.rename(old)
                part.rename(target)
                _remove(old)
            else:
                part.rename(target)
        finally:
            _remove(part)
        noted = {"image": image, "brought": round(time.time(), 3)}
        self._note(target).write_text(json.dumps(noted))

    @contextlib.contextmanager
    def _scratch(self, image: str) -> Iterator[Path]:
        """A name on the images' own disk for something large that is soon to go."""
        self._directory.mkdir(exist_ok=True)
        path = self._directory / f".{file_name(image)}.{os.getpid()}.tmp"
        try:
            yield path
        finally:
            _remove(path)


def run_visibly(argv: tuple[str, ...]) -> str:
    """Run a command whose progress the person sees; returns its standard output.

    Raises:
        Refused: it is not there, or failed.
    """
    print(f"$ {' '.join(argv)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise Refused(
            f"{argv[0]} cannot be started ({error.strerror}); load its module first?"
        ) from error
    if done.returncode != 0:
        raise Refused(f"{argv[0]} failed with exit code {done.returncode}; its words are above")
    return done.stdout


def _unset(site: Site, key: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        Problem(f"site {site.name}", key, "", f"expected {what}; it is unset")
    )


def _no_way(source: Path, why: str) -> InputError:
    return InputError(Problem(str(source), "", "", why))


@contextlib.contextmanager
def _blaming(source: Path) -> Iterator[None]:
    try:
        yield
    except Broken as error:
        raise InputError(Problem(str(source), "", "", str(error))) from error


def _expect_sif(path: Path) -> None:
    with _blaming(path):
        if not path.is_file() or kind_of(path) is not Kind.SIF:
            raise Broken("expected a SIF file")


def _special_files(folder: str, names: list[str]) -> list[str]:
    modes = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [
        name
        for name, mode in modes.items()
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    ]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_note(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
