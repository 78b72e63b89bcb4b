"""Platforms: for whom an image is built, and which of several fits.

The words are Go's, the variants those of image-index.md, the rules containerd's: of an architecture's
variants a machine runs its own and the lower ones, and the highest of these is taken.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from runtime.errors import RuntimeFailure

#: What uname, or a user, calls an architecture that Go calls by another name.
_OTHER_WORDS = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armel": "arm/v6",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}
_OWN_VARIANT = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
_WORD = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Platform:
    """For whom an image is built, in Go's names; without a variant it is the architecture's usual one."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def to_json(self) -> dict[str, Any]:
        """The platform as a descriptor in an index has it."""
        value = {"architecture": self.architecture, "os": self.os}
        return value | {"variant": self.variant} if self.variant else value

    def runs(self, offered: Platform) -> bool:
        """Whether a machine of this platform runs what is built for `offered`."""
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return False
        return _level(offered) is not None and (_level(offered) or 0) <= (_level(self) or 0)


def host_platform() -> Platform:
    """The platform this machine runs."""
    return parse_platform(f"linux/{os.uname().machine}")


def parse_platform(text: str) -> Platform:
    """Read `OS/ARCHITECTURE[/VARIANT]`; an architecture alone is linux's.

    Raises RuntimeFailure naming the input when it is anything else.
    """
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) not in (2, 3) or not all(map(_WORD.fullmatch, parts)):
        raise RuntimeFailure(f"invalid platform {text!r}: it is OS/ARCHITECTURE[/VARIANT], as linux/arm64")
    system, architecture, *variant = parts
    words = _OTHER_WORDS.get(architecture, architecture).split("/")
    return Platform(system, words[0], "".join(variant or words[1:]))


def choose(offered: list[Platform | None], wanted: Platform) -> int | None:
    """The place in `offered` of what fits `wanted` best; None when nothing does.

    What says no platform fits when nothing better does.
    """
    fitting = [place for place, platform in enumerate(offered) if platform is None or wanted.runs(platform)]
    return max(fitting, key=lambda place: (_rank(offered[place]), -place), default=None)


def _rank(platform: Platform | None) -> int:
    return -1 if platform is None else _level(platform) or 0


def _level(platform: Platform) -> int | None:
    """The number of a variant; None when it has none, so that no order is known."""
    variant = platform.variant or _OWN_VARIANT.get(platform.architecture, "v0")
    number = variant.removeprefix("v")
    return int(number) if variant.startswith("v") and re.fullmatch("[0-9]{1,3}", number) else None
