"""Where a container image lies at a site: the names that every part of the project agrees on. Pure.

Runtimes fall into two kinds. Some keep their images themselves and know them by name (``BY_NAME``);
the others run what lies unpacked, or as one file, in the site's image directory.
"""

from __future__ import annotations

import re
from typing import Callable, Mapping, Optional

BY_NAME = ("podman", "podman-hpc", "shifter")
AS_FILES = ("apptainer", "singularity")  # one SIF file; the others unpacked
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")


class BadContainer(ValueError):
    """A container that cannot be run here; the text says what to do."""


def plain_name(image: str) -> str:
    """``org/torch:2.1`` of ``docker://org/torch:2.1``."""
    return _SCHEME.sub("", image)


def file_name(image: str) -> str:
    """What an image is called in an image directory; SIF files have ``.sif`` behind it.

    Every character but letters, digits and ``._-`` is written as ``_``.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", plain_name(image))


def resolve_image(
    image: str,
    runtime: str,
    image_dir: Optional[str],
    exists: Callable[[str], bool],
    images: Mapping[str, str] = {},
) -> str:
    """The image as the runtime is to be told: a name, or where it lies unpacked or as a file.

    ``images``: the site's own table, which says more than any rule.

    Raises:
        BadContainer: it is not there.
    """
    mapped = images.get(image, images.get(plain_name(image)))
    if mapped is None and runtime in BY_NAME:
        return plain_name(image)
    if mapped is not None and not mapped.startswith("/"):
        return mapped
    if mapped is not None or image.startswith("/"):
        place = mapped or image
        if exists(place):
            return place
        named = f"{image}, for this site {place}," if mapped else place
        raise BadContainer(f"container image {named} does not exist on the node")
    if image_dir is None:
        raise BadContainer(f"container image {image}: the site names no image_dir to look in")
    base = f"{image_dir}/{file_name(image)}"
    for candidate in (base, f"{base}.sif"):
        if exists(candidate):
            return candidate
    raise BadContainer(
        f"container image {image} has not been brought to this site: neither {base} nor "
        f"{base}.sif exists; bring it with `harvester image pull {image}`"
    )
