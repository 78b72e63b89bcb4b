"""Lower files with several names: after copy-up all of them lead to the one copy.

Kernel overlayfs breaks such links, or needs an index beside the upper layer to keep them. Here every
name that is seen becomes a link in the upper layer, which so tells the truth to whoever reads it.

Where the names are is found out by one walk of the layer, in a worker thread, the first time a file of it
with several names is copied up. A name's path in the layer is its path in the union too, unless a
directory above it was renamed (redirect.py).

A crash among the links is made good at the next mount: until the last one stands, the copy has one more
link in `workdir/hardlinks`, called by the number of the layer and of the inode there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterator

from unionfs import redirect
from unionfs.layer import Layer, join, split
from unionfs.nodes import Node
from unionfs.tree import Tree
from unionfs.upper import Upper

log = logging.getLogger(__name__)

_RECORDS = b"hardlinks"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Makes sure that the upper layer has a directory.
BringUp = Callable[[Node], None]


class HardLinks:
    """The names of the lower files of one tree."""

    def __init__(self, tree: Tree, upper: Upper, bring_up: BringUp) -> None:
        self._tree = tree
        self._upper = upper
        self._bring_up = bring_up
        self._names: dict[Layer, dict[int, list[bytes]]] = {}
        #: Directories of each layer above the bottom one that are redirected, as last walked.
        self._redirected: dict[Layer, list[bytes]] = {}
        with contextlib.suppress(FileExistsError):
            os.mkdir(_RECORDS, 0o700, dir_fd=upper.work_fd)
        self._records_fd = os.open(_RECORDS, _DIRECTORY, dir_fd=upper.work_fd)

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._records_fd)

    def knows(self, layer: Layer) -> bool:
        """Whether the layer was walked."""
        return layer in self._names and not (self._tree.redirected and self._upper not in self._redirected)

    def walk(self, layer: Layer) -> None:
        """Walk a layer for its names, and those above it for redirects. May run in a worker thread.

        It uses layer objects of its own, since those of the tree belong to the thread that decides.
        """
        if layer not in self._names:
            with _own(layer) as own:
                self._names[layer] = own.hard_links()
        for above in (self._upper, *self._tree.lowers):
            if above is layer:
                break
            if above not in self._redirected:
                with _own(above) as own:
                    walked = (path for path in own.walk() if redirect.read(own.proc_path(path)) is not None)
                    self._redirected[above] = list(walked)

    def renamed(self) -> None:
        """A directory of the upper layer was renamed: what was walked of it is not true any more."""
        self._redirected.pop(self._upper, None)

    # Linking ---------------------------------------------------------------------------------------

    def adopt(self, node: Node, staged: bytes, layer: Layer, ino: int) -> None:
        """Link the finished copy to every name of the node that is seen; all or none of them.

        `ino` is the file's inode number in `layer`, which was walked. Raises OSError.
        """
        for path in self._names[layer].get(ino, ()):
            for seen in self._union_paths(layer, path):
                found = self._tree.resolve(seen)
                if found is not None and found is not node:
                    self._tree.nodes.release(found)
        record = b"%x-%x" % (self._tree.tag(layer), ino)
        staging_fd = self._upper.staging_fd
        os.link(staged, record, src_dir_fd=staging_fd, dst_dir_fd=self._records_fd, follow_symlinks=False)
        linked: list[bytes] = []
        try:
            for parent, name in node.names:
                linked.append(self._link(staging_fd, staged, parent, name))
            os.unlink(staged, dir_fd=staging_fd)
            os.unlink(record, dir_fd=self._records_fd)
        except BaseException:
            for path in linked:
                with self._upper.keeps_times(split(path)[0]):
                    self._upper.remove(path, directory=False)
            os.unlink(record, dir_fd=self._records_fd)
            raise

    def _link(self, source_fd: int, source: bytes, parent: Node, name: bytes) -> bytes:
        self._bring_up(parent)
        directory = self._tree.path(parent)
        with self._upper.keeps_times(directory):
            target_fd = self._upper.directory_fd(directory)
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        return join(directory, name)

    def _union_paths(self, layer: Layer, path: bytes) -> Iterator[bytes]:
        """Where a path of a lower layer may be seen: there, and below each directory renamed above it."""
        yield path
        for owner, directories in self._redirected.items():
            if owner is layer or not self._is_above(owner, layer):
                continue
            for directory in directories:
                seen_at = [directory] if owner is self._upper else list(self._union_paths(owner, directory))
                for base in seen_at:
                    for place in self._places(base):
                        if place[0] is layer and path.startswith(place[1] + b"/"):
                            yield base + path[len(place[1]) :]

    def _is_above(self, owner: Layer, layer: Layer) -> bool:
        return owner is self._upper or self._tree.position(owner) < self._tree.position(layer)

    def _places(self, path: bytes) -> tuple[redirect.Place, ...]:
        """The lower places of the directory at a path of the union."""
        node = self._tree.resolve(path)
        if node is None:
            return ()
        places = node.lowers if node.kind == stat.S_IFDIR else ()
        self._tree.nodes.release(node)
        return places

    # After a crash ---------------------------------------------------------------------------------

    def finish_interrupted(self) -> None:
        """Complete the links that an earlier server was killed among. Called before serving.

        Every name that still leads to the recorded lower inode becomes a link to the copy.
        """
        for record in os.listdir(self._records_fd):
            tag, _, number = record.partition("-")
            try:
                layer, ino = self._tree.layer_of(int(tag, 16)), int(number, 16)
            except ValueError:
                log.info("'%s' in %s of the workdir is no record of ours", record, _RECORDS.decode())
                continue
            if layer is not None:
                self.walk(layer)
                for path in self._names[layer].get(ino, ()):
                    for seen in self._union_paths(layer, path):
                        self._finish(record, layer, path, seen)
            os.unlink(record, dir_fd=self._records_fd)
        # What was merged on the way has changed on the disk.
        self._tree.root.listing = None

    def _finish(self, record: str, layer: Layer, path: bytes, seen: bytes) -> None:
        node = self._tree.resolve(seen)
        if node is None:
            return
        if not node.upper and node.lowers[0] == (layer, path):
            self._link(self._records_fd, os.fsencode(record), *node.names[0])
        self._tree.nodes.release(node)


@contextlib.contextmanager
def _own(layer: Layer) -> Iterator[Layer]:
    own = Layer(layer.path, os.dup(layer.root_fd), crosses_mounts=True)
    try:
        yield own
    finally:
        own.close()
