"""`python -m runtime.containers.cleanup ROOT ID [EXEC-DIRECTORY]`: what conmon runs when a process has ended.

A module of its own, and not a command of unionctl, because it runs after each container and this way
imports little.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from runtime.containers.settle import settle_by_path
from runtime.root import Root


def main(arguments: list[str]) -> int:
    """Unmount, record the exit code, remove what was to be removed; a container already gone is fine.

    One that its policy restarts is left to a process that waits for its time.
    """
    path, container_id, *exec_directory = arguments
    root = Root(Path(path))
    if exec_directory:
        shutil.rmtree(exec_directory[0], ignore_errors=True)
        return 0
    settle_by_path(root, root.containers / container_id)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
