"""Where a union cannot do what a local disk does: the one list of it.

Each entry is an expected failure, and strict: a test that passes where its failure is expected fails the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

#: Situations in which a test's files begin in lower layers.
LOWER = ("lower", "parent", "deep")


@dataclass(frozen=True)
class Difference:
    """Tests that fail on the union, and why they must."""

    module: str
    tests: str
    reason: str
    situations: tuple[str, ...] = ("upper", "lower", "parent", "whiteout", "deep")

    def concerns(self, test: str, module: str, situation: str) -> bool:
        """Whether a test is among them."""
        return module == self.module and fnmatch(test, self.tests) and situation in self.situations


ALL: tuple[Difference, ...] = (
    Difference(
        "test_fallocate",
        "test_collapses_and_inserts",
        "the kernel's FUSE refuses FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE without asking",
    ),
    Difference(
        "test_names",
        "test_names_that_mean_a_whiteout_elsewhere",
        "a name that begins with .wh. is a whiteout to those who read the layer: EPERM, as in fuse-overlayfs",
    ),
    Difference(
        "test_rename",
        "test_directory_made_before_in_one_step",
        "a directory that lower layers take part in gives EXDEV, as in overlayfs, unless redirect_dir=on",
        LOWER,
    ),
    Difference(
        "test_unlink",
        "test_changes_ctime_of_a_removed_open_file",
        "a file of a lower layer is not copied up to be removed: what is open is the lower file itself",
        LOWER,
    ),
    Difference(
        "test_open",
        "test_unnamed_files_change_no_time_of_the_directory",
        "a directory's first change copies it up, and nothing can set the ctime of the copy, as in overlayfs",
        ("lower", "deep"),
    ),
)
