"""What the workloads use: lower layers, an archive, a repository, wheels. Made once, the same every time."""

from __future__ import annotations

import compileall
import io
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything."""

    tree: int  # files of the lower tree that is read
    small: int  # files of the lower tree that is changed
    large: int  # files of the tree that shows how cost and memory grow
    layered: int  # files of the tree that lies in many layers
    archive: int  # files of the archive
    names: int  # files that are created, renamed and removed
    calls: int  # calls of a loop on what is cached
    blocks: int  # 4 KiB blocks read or written at random
    big: int  # MiB of the file that is read and written
    giant: int  # MiB of the file that is copied up
    modules: int
    sources: int
    commits: int
    wheels: int
    layers: tuple[int, ...]  # numbers of layers that the layered tree is dealt out to


FULL = Sizes(
    tree=10_000,
    small=2_000,
    large=100_000,
    layered=3_000,
    archive=10_000,
    names=5_000,
    calls=50_000,
    blocks=20_000,
    big=256,
    giant=1024,
    modules=400,
    sources=30,
    commits=20,
    wheels=10,
    layers=(1, 10, 100, 300),
)
QUICK = Sizes(
    tree=1_000,
    small=200,
    large=3_000,
    layered=600,
    archive=800,
    names=500,
    calls=5_000,
    blocks=2_000,
    big=32,
    giant=64,
    modules=80,
    sources=4,
    commits=4,
    wheels=2,
    layers=(1, 100),
)


class Material:
    """A directory with all of it: `base` has the lower layers, the rest lies beside. Made when needed."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        """Everything will be in `directory`, which is there."""
        self.sizes = sizes
        self.base = directory / "lowers"
        self.base.mkdir()
        self._directory = directory
        self._random = random.Random(1)
        self._letters = self._random.randbytes(64 * 1024)
        self._makers: dict[str, Callable[[str], None]] = {
            "tree": lambda name: self._tree(name, sizes.tree),
            "small": lambda name: self._tree(name, sizes.small),
            "large": lambda name: self._tree(name, sizes.large, sizes=(0, 1)),
            "big": lambda name: self._file(name, sizes.big),
            "giant": lambda name: self._file(name, sizes.giant),
            "modules": self._modules,
            "program": self._program,
            "empty": lambda name: (self.base / name).mkdir(),
        }

    def lowers(self, wanted: str | int) -> tuple[str, ...]:
        """The names of the layers: one by its name, or a tree that lies in so many. Raises OSError."""
        names = (
            (wanted,) if isinstance(wanted, str) else tuple(f"n{wanted}.{layer}" for layer in range(wanted))
        )
        if not (self.base / names[0]).exists():
            if isinstance(wanted, str):
                self._makers[wanted](wanted)
            else:
                self._layered(names)
            os.sync()
        return names

    def _content(self, least: int = 100, most: int = 8000) -> bytes:
        start = self._random.randrange(32 * 1024)
        return self._letters[start : start + self._random.randrange(least, most)]

    def _tree(self, name: str, files: int, sizes: tuple[int, int] = (100, 8000)) -> None:
        """`files` files in directories of twenty, two levels deep; every tenth has a symlink beside it."""
        for number in range(files):
            directory = self.base / name / f"d{number // 400}" / f"d{number // 20}"
            if number % 20 == 0:
                directory.mkdir(parents=True)
            (directory / f"file{number}").write_bytes(self._content(*sizes))
            if number % 10 == 0:
                (directory / f"link{number}").symlink_to(f"file{number}")

    def _layered(self, names: Sequence[str]) -> None:
        """One merged tree of thirty directories, its files dealt out to the layers."""
        for name in names:
            for directory in range(30):
                (self.base / name / f"d{directory}").mkdir(parents=True)
        for number in range(self.sizes.layered):
            place = self.base / names[number % len(names)]
            (place / f"d{number % 30}" / f"file{number}").write_bytes(b"x")

    def _file(self, name: str, mebibytes: int) -> None:
        (self.base / name).mkdir()
        with open(self.base / name / "file", "wb") as file:
            for _ in range(mebibytes):
                file.write(self._random.randbytes(MEBIBYTE))

    def _modules(self, name: str) -> None:
        """Packages of Python modules, compiled, and one that imports them all."""
        packages = self.base / name / "lib"
        names = []
        for number in range(self.sizes.modules):
            package = packages / f"package{number // 20}"
            if number % 20 == 0:
                package.mkdir(parents=True)
                (package / "__init__.py").write_text("")
            names.append(f"package{number // 20}.module{number}")
            (package / f"module{number}.py").write_text(f"VALUE = {number}\n" * 40)
        (packages / "everything.py").write_text("".join(f"import {name}\n" for name in names))
        compileall.compile_dir(packages, quiet=1)

    def _program(self, layer: str) -> None:
        """A C program of a few files, with a makefile."""
        source = self.base / layer
        source.mkdir()
        names = [f"part{number}" for number in range(self.sizes.sources)]
        (source / "parts.h").write_text("".join(f"int {name}(int);\n" for name in names))
        for name in names:
            includes = '#include <stdio.h>\n#include <string.h>\n#include "parts.h"\n'
            (source / f"{name}.c").write_text(f"{includes}int {name}(int x) {{ return x + 1; }}\n")
        calls = "".join(f"x = {name}(x); " for name in names)
        main = f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ int x = 0; {calls} return !x; }}\n'
        (source / "main.c").write_text(main)
        objects = " ".join(f"{name}.o" for name in [*names, "main"])
        (source / "Makefile").write_text(
            f"program: {objects}\n\t$(CC) -o $@ $^\n%.o: %.c parts.h\n\t$(CC) -O0 -c -o $@ $<\n"
        )

    @cached_property
    def archive(self) -> Path:
        """A tar of many small files."""
        path = self._directory / "tree.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(self.sizes.archive):
                if number % 50 == 0:
                    directory = tarfile.TarInfo(f"d{number // 50}")
                    directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(directory)
                content = self._content()
                member = tarfile.TarInfo(f"d{number // 50}/file{number}")
                member.size, member.mtime = len(content), 1_600_000_000 + number
                archive.addfile(member, io.BytesIO(content))
        return path

    @cached_property
    def repository(self) -> Path:
        """A bare repository: a first commit of many files, then some that each change a tenth of them."""
        path = self._directory / "repository.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
        stream = io.BytesIO()
        for commit in range(self.sizes.commits):
            stream.write(
                b"commit refs/heads/main\ncommitter Bench <b@example.org> %d +0000\n" % (10**9 + commit)
            )
            stream.write(b"data 1\nx\n")
            for number in range(self.sizes.small):
                if commit == 0 or number % 10 == commit % 10:
                    content = self._content()
                    stream.write(b"M 100644 inline d%d/file%d\n" % (number // 20, number))
                    stream.write(b"data %d\n%s\n" % (len(content), content))
        command = ["git", "-C", str(path), "fast-import", "--quiet"]
        subprocess.run(command, input=stream.getvalue(), check=True)
        return path

    @cached_property
    def wheels(self) -> list[Path]:
        """Wheels of a hundred modules each."""
        directory = self._directory / "wheels"
        directory.mkdir()
        for number in range(self.sizes.wheels):
            name = f"bench{number}"
            with zipfile.ZipFile(directory / f"{name}-1-py3-none-any.whl", "w") as wheel:
                for module in range(100):
                    wheel.writestr(f"{name}/module{module}.py", f"VALUE = {module}\n" * 30)
                info = f"{name}-1.dist-info"
                wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
                wheel.writestr(
                    f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                )
                wheel.writestr(f"{info}/RECORD", "")
        return sorted(directory.iterdir())

    def files_of(self, layer: str) -> list[str]:
        """The paths of the regular files of a layer, relative to it, in an order that is always the same."""
        found = []
        for directory, _, names in os.walk(self.base / layer):
            paths = [os.path.join(directory, name) for name in names]
            found += [os.path.relpath(path, self.base / layer) for path in paths if not os.path.islink(path)]
        return sorted(found)


PYTHON = sys.executable
