"""Bringing images to a site: archives of every kind, safe unpacking, command lines, refusals."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harvester.errors import ConfigurationError, InputError, Refused
from harvester.images import commands
from harvester.images.archives import Kind, kind_of
from harvester.images.rootfs import RootFs
from harvester.images.shelf import Shelf, run_visibly
from harvester.site import Site
from payload_runner.commits import Broken
from payload_runner.containers import RUNTIMES
from payload_runner.preparing import image_environment
from payload_runner.protocol import NodeShape

IMAGE = "docker://org/torch:2.1"
# The head of a shell for x86_64, as far as anybody looks.
SHELL = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00"
LAYER: dict[str, bytes | str] = {"usr/bin/sh": SHELL, "bin": "-> usr/bin", "etc/old": b"1"}
Entries = Mapping[str, bytes | str]


def tar_of(entries: Entries, *, compress: bool = False) -> bytes:
    """A tar file; "-> x" is a link to x, "=> x" a hard link, "|" a FIFO, "/" a directory."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in entries.items():
            item = tarfile.TarInfo(name)
            item.mode = 0o4755
            if isinstance(content, bytes):
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))
                continue
            kinds = {"-": tarfile.SYMTYPE, "=": tarfile.LNKTYPE, "|": tarfile.FIFOTYPE}
            item.type = kinds.get(content[0], tarfile.DIRTYPE)
            item.linkname = content[3:]
            tar.addfile(item)
    return gzip.compress(made.getvalue()) if compress else made.getvalue()


def docker_archive(path: Path, *layers: Entries, architecture: str = "amd64") -> Path:
    config = {"architecture": architecture, "config": {"Env": ["PATH=/conda/bin:/bin", "A=b c"]}}
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]
    files: dict[str, bytes | str] = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
    }
    files |= {name: tar_of(layer) for name, layer in zip(names, layers, strict=True)}
    path.write_bytes(tar_of(files))
    return path


def oci_archive(path: Path, layer: Entries, *, architectures: Sequence[str] = ("amd64",)) -> Path:
    blobs: dict[str, bytes | str] = {}

    def blob(data: bytes, **more: Any) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{sha256}"] = data
        return {"digest": f"sha256:{sha256}", "size": len(data), **more}

    def manifest(architecture: str) -> dict[str, Any]:
        config = blob(json.dumps({"architecture": architecture, "config": {}}).encode())
        packed = blob(tar_of(layer, compress=True), mediaType="x.tar+gzip")
        made = json.dumps({"config": config, "layers": [packed]}).encode()
        return blob(made, platform={"architecture": architecture})

    inner = json.dumps({"manifests": [manifest(item) for item in architectures]}).encode()
    blobs["index.json"] = json.dumps({"manifests": [blob(inner)]}).encode()
    path.write_bytes(tar_of(blobs))
    return path


def shelf(tmp_path: Path, runtime: str = "bwrap", **site: Any) -> Shelf:
    given: dict[str, Any] = {"image_dir": str(tmp_path / "images"), **site}
    found = Site(
        name="here",
        batch_system="local",
        node=NodeShape(),
        queues=(),
        spool=tmp_path,
        container_runtime=runtime,
        **given,
    )
    return Shelf(found, "x86_64", refuse_to_run, {"PATH": ""})


def refuse_to_run(argv: tuple[str, ...]) -> str:
    raise AssertionError(argv)


# --- archives become root file systems ---


@pytest.mark.parametrize("make", [docker_archive, oci_archive])
def test_archive_becomes_a_root_file_system(
    tmp_path: Path, make: Callable[[Path, Entries], Path]
) -> None:
    packed = make(tmp_path / "image.tar", LAYER)
    place = Path(shelf(tmp_path).import_file(packed, IMAGE))
    assert place == tmp_path / "images" / "org_torch_2.1"
    assert (place / "bin" / "sh").read_bytes() == SHELL
    assert (place / "usr" / "bin" / "sh").stat().st_mode & 0o7777 == 0o755
    assert (place / "srv" / "workDir").is_dir()
    assert [item.name for item in place.parent.iterdir() if item.suffix != ".json"] == [place.name]


def test_image_environment_reaches_the_payload(tmp_path: Path) -> None:
    place = shelf(tmp_path).import_file(docker_archive(tmp_path / "i.tar", LAYER), IMAGE)
    assert image_environment(place) == {"PATH": "/conda/bin:/bin", "A": "b c"}


def test_later_layers_hide_what_earlier_ones_have(tmp_path: Path) -> None:
    later: Entries = {
        "etc/.wh.old": b"",
        "opt/new": b"2",
        "opt/.wh..wh..opq": b"",
        "usr/bin/tool": "=> usr/bin/sh",
        "dev/pipe": "|",
    }
    first: Entries = {**LAYER, "opt/gone/deep": b"3"}
    place = Path(
        shelf(tmp_path).import_file(docker_archive(tmp_path / "i.tar", first, later), IMAGE)
    )
    assert not (place / "etc" / "old").exists()
    assert os.listdir(place / "opt") == ["new"]
    assert (place / "bin" / "tool").read_bytes() == SHELL
    assert not (place / "dev" / "pipe").exists()


@pytest.mark.parametrize(
    "layer",
    [
        {"../../evil": b"x"},
        {"/etc/../../../evil": b"x"},
        {"out": "-> {outside}", "out/evil": b"x"},
        {"out": "-> ../../../../../../..{outside}", "out/evil": b"x"},
        {"a": "-> {outside}", "b": "-> a", "b/evil": b"x"},
    ],
)
def test_nothing_is_written_outside(tmp_path: Path, layer: Entries) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    entries = {
        name: content.replace("{outside}", str(outside)) if isinstance(content, str) else content
        for name, content in layer.items()
    }
    with tarfile.open(fileobj=io.BytesIO(tar_of(entries))) as tar:
        RootFs(root).apply(tar)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "deep" / "evil").exists()


def test_hard_link_to_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "root").mkdir()
    entries = {"link": f"=> {tmp_path}/secret"}
    with (
        tarfile.open(fileobj=io.BytesIO(tar_of(entries))) as tar,
        pytest.raises(Broken, match="a hard link to nothing"),
    ):
        RootFs(tmp_path / "root").apply(tar)


def test_image_environment_is_not_read_through_a_link_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOKEN=1\n")
    (tmp_path / "image" / "ch").mkdir(parents=True)
    (tmp_path / "image" / "ch" / "environment").symlink_to(tmp_path / "secret")
    assert image_environment(str(tmp_path / "image")) == {}


def test_root_file_systems_come_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(tar_of({**LAYER, "./etc/x": b"1"}, compress=True))
    assert kind_of(tmp_path / "root.tar") is Kind.ROOT
    place = shelf(tmp_path).import_file(tmp_path / "root.tar", "packed")
    os.mkfifo(Path(place) / "etc" / "pipe")
    again = shelf(tmp_path).import_file(Path(place), "unpacked")
    assert (Path(again) / "bin" / "sh").read_bytes() == SHELL


# --- what is refused ---


@pytest.mark.fault("image or runtime broken")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"not a tar"), "not a whole image archive"),
        (lambda path: path.write_bytes(tar_of({"x": b"1"})), "neither an image nor a root"),
        (lambda path: docker_archive(path, {"etc/x": b"1"}), "the image has no /bin/sh"),
        (lambda path: docker_archive(path, LAYER, architecture="arm64"), "is for arm64; this"),
        (lambda path: oci_archive(path, LAYER, architectures=("arm64",)), "is for arm64"),
        (
            lambda path: path.write_bytes(tar_of({"bin/sh": SHELL[:18] + b"\xb7\x00", "etc": "/"})),
            "is for aarch64; this machine is x86_64",
        ),
        (
            lambda path: path.write_bytes(docker_archive(path, LAYER).read_bytes()[:6000]),
            "not a whole image archive",
        ),
    ],
)
def test_bad_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    packed = tmp_path / "bad.tar"
    make(packed)
    with pytest.raises(InputError, match=words) as caught:
        shelf(tmp_path).import_file(packed, IMAGE)
    assert str(caught.value).startswith(str(packed))
    assert not (tmp_path / "images").exists() or os.listdir(tmp_path / "images") == []


@pytest.mark.fault("image or runtime broken")
def test_tampered_oci_blob_is_refused(tmp_path: Path) -> None:
    packed = oci_archive(tmp_path / "i.tar", LAYER)
    packed.write_bytes(packed.read_bytes().replace(b'"amd64"', b'"amd65"'))
    with pytest.raises(InputError, match=r"is not what its digest says|is for amd65"):
        shelf(tmp_path).import_file(packed, IMAGE)


def test_image_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    packed = docker_archive(tmp_path / "i.tar", LAYER)
    shelf(tmp_path).import_file(packed, IMAGE)
    with pytest.raises(Refused, match="is there already; --force replaces it"):
        shelf(tmp_path).import_file(packed, IMAGE)
    docker_archive(packed, {**LAYER, "etc/new": b"1"})
    place = shelf(tmp_path).import_file(packed, IMAGE, replace=True)
    assert (Path(place) / "etc" / "new").exists()
    assert [item.image for item in shelf(tmp_path).listed()] == [IMAGE]


@pytest.mark.parametrize(
    ("runtime", "site", "key"),
    [("none", {}, "containers.runtime"), ("bwrap", {"image_dir": None}, "containers.image_dir")],
)
def test_site_must_say_where_images_go(
    tmp_path: Path, runtime: str, site: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"site here: {key}: expected .*; it is unset"):
        shelf(tmp_path, runtime, **site)


def test_without_a_way_to_fetch_the_other_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"none of skopeo, podman, docker is on PATH.*image import"):
        shelf(tmp_path).pull(IMAGE)
    with pytest.raises(InputError, match="bwrap cannot fetch from oras://"):
        shelf(tmp_path).pull("oras://org/x")


@pytest.mark.parametrize(("runtime", "words"), [("shifter", "only; use"), ("podman", "pack it")])
def test_what_a_runtime_cannot_take_is_said(tmp_path: Path, runtime: str, words: str) -> None:
    source = tmp_path / "dir"
    source.mkdir()
    with pytest.raises(InputError, match=words):
        shelf(tmp_path, runtime).import_file(source, IMAGE)


def test_sif_is_copied_for_apptainer_and_refused_elsewhere(tmp_path: Path) -> None:
    sif = tmp_path / "x.sif"
    sif.write_bytes(b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0")
    place = Path(shelf(tmp_path, "apptainer").import_file(sif, IMAGE))
    assert (place.name, place.read_bytes()) == ("org_torch_2.1.sif", sif.read_bytes())
    with pytest.raises(InputError, match="a SIF file is for apptainer, this site has bwrap"):
        shelf(tmp_path).import_file(sif, IMAGE)


def test_command_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused, match="false failed with exit code 1"):
        run_visibly(("false",))
    with pytest.raises(Refused, match="no-such-program cannot be started"):
        run_visibly(("no-such-program",))
    assert capsys.readouterr().err == "$ false\n$ no-such-program\n"


# --- command lines ---


def test_each_runtime_is_asked_in_its_own_way() -> None:
    assert commands.pull("shifter", IMAGE) == ("shifterimg", "pull", "docker:org/torch:2.1")
    assert commands.pull("podman-hpc", IMAGE) == ("podman-hpc", "pull", "org/torch:2.1")
    assert commands.pull_sif("apptainer", IMAGE, "/i/t.sif") == (
        *("apptainer", "pull", "/i/t.sif"),
        IMAGE,
    )
    assert commands.build_sif("singularity", "/t/x.tar", Kind.OCI, "/i/x.sif") == (
        *("singularity", "build", "/i/x.sif"),
        "oci-archive:///t/x.tar",
    )
    assert commands.load("podman", "/t/x.tar", Kind.DOCKER)[-1] == "docker-archive:/t/x.tar"
    assert commands.name_it("podman-hpc", "1f", IMAGE) == (
        ("podman-hpc", "tag", "1f", "org/torch:2.1"),
        ("podman-hpc", "migrate", "org/torch:2.1"),
    )
    assert commands.listing("shifter") == ("shifterimg", "images")


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_every_runtime_can_be_asked_for_an_image(tmp_path: Path, runtime: str) -> None:
    asked: list[str] = []

    def note(argv: tuple[str, ...]) -> str:
        asked.append(argv[0])
        for word in argv:  # what the command would have made
            path = Path(word.removeprefix("docker-archive:"))
            if path.suffix == ".tmp":
                docker_archive(path, LAYER)
            elif path.suffix == ".part":
                path.write_bytes(bytes(32) + b"SIF_MAGIC")
        return ""

    on_path = tmp_path / "bin"
    on_path.mkdir()
    (on_path / "skopeo").touch(0o755)
    kept = shelf(tmp_path, runtime)
    kept._run, kept._environ = note, {"PATH": str(on_path)}
    assert kept.pull(IMAGE).endswith(("org/torch:2.1", "org_torch_2.1", "org_torch_2.1.sif"))
    fetched_by = {"bwrap": "skopeo", "charliecloud": "skopeo", "shifter": "shifterimg"}
    assert asked == [fetched_by.get(runtime, runtime)]
