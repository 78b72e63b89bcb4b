"""What tests of builds share: a context to put files in, and unionctl to build it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unionctl_runner import Unionctl


class Builder:
    """Builds the image `made` from the directory `context`."""

    def __init__(self, unionctl: Unionctl, context: Path) -> None:
        self.unionctl = unionctl
        self.context = context
        context.mkdir()

    def __call__(self, *lines: str, options: tuple[str, ...] = (), code: int = 0) -> str:
        """Build a Dockerfile of `lines`; what was said on stderr."""
        (self.context / "Dockerfile").write_text("\n".join(lines))
        words = ("build", "--no-pull", "-t", "made", *options, str(self.context))
        return self.unionctl(*words, code=code, timeout=180).stderr.decode()

    def shell(self, command: str, image: str = "made") -> list[str]:
        """The lines that a shell in the image says."""
        words = ("run", "--rm", "--entrypoint", "/bin/sh", image, "-c", command)
        return self.unionctl.out(*words).splitlines()

    def details(self) -> dict[str, Any]:
        """What inspect says of the image."""
        return dict(json.loads(self.unionctl.out("inspect", "--type", "image", "made"))[0])

    @property
    def config(self) -> dict[str, Any]:
        """The image's config."""
        return dict(self.details()["Config"])


def ran(output: str) -> list[str]:
    """The steps with files that were not taken from the cache."""
    lines = output.splitlines()
    steps = [
        line.partition(" : ")[2]
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("Step ") and "Using cache" not in after
    ]
    return [step for step in steps if step.startswith(("RUN", "COPY", "ADD", "WORKDIR"))]
