"""Command lines that bring images: per runtime, as its own documents give them. Pure."""

from __future__ import annotations

from harvester.images.archives import Kind
from payload_runner.images import plain_name

Argv = tuple[str, ...]


def pull(runtime: str, image: str) -> Argv:
    """Fetch into the runtime's own storage (runtimes that know images by name)."""
    name = plain_name(image)
    if runtime == "shifter":
        return ("shifterimg", "pull", f"docker:{name}")
    return (runtime, "pull", name)


def pull_sif(runtime: str, image: str, target: str) -> Argv:
    """Fetch as one SIF file."""
    return (runtime, "pull", target, image if "://" in image else f"docker://{image}")


def fetchers(image: str, target: str) -> tuple[tuple[Argv, ...], ...]:
    """Ways to fetch an image as a docker-archive at ``target``; the first one at hand will do."""
    name = plain_name(image)
    return (
        (("skopeo", "copy", f"docker://{name}", f"docker-archive:{target}"),),
        (("podman", "pull", name), ("podman", "save", "--output", target, name)),
        (("docker", "pull", name), ("docker", "save", "--output", target, name)),
    )


def build_sif(runtime: str, source: str, kind: Kind, target: str) -> Argv:
    """Make a SIF file of what a person brought."""
    scheme = {Kind.DOCKER: "docker-archive://", Kind.OCI: "oci-archive://"}.get(kind, "")
    return (runtime, "build", target, f"{scheme}{source}")


def load(runtime: str, source: str, kind: Kind) -> Argv:
    """Bring a file into the storage of Podman or podman-hpc; it prints the image's id last."""
    if kind is Kind.ROOT:
        return (runtime, "import", source)
    scheme = "docker-archive" if kind is Kind.DOCKER else "oci-archive"
    return (runtime, "pull", f"{scheme}:{source}")


def name_it(runtime: str, image_id: str, image: str) -> tuple[Argv, ...]:
    """Give a loaded image its name, and bring it to where compute nodes see it."""
    name = plain_name(image)
    tag = (runtime, "tag", image_id, name)
    return (tag, ("podman-hpc", "migrate", name)) if runtime == "podman-hpc" else (tag,)


def listing(runtime: str) -> Argv:
    """What a runtime that knows images by name has."""
    return ("shifterimg", "images") if runtime == "shifter" else (runtime, "images")
