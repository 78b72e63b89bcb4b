"""Container IDs and the names that containers get when nobody names them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container

from runtime.errors import RuntimeFailure

_VALID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

_MOODS = """
able amber brave bright brisk calm candid clever cosy crisp curious daring deft eager early earnest
fair fearless fond frank gentle glad golden hardy honest humble jolly keen kind lively loyal lucid
mellow merry modest neat nimble noble patient placid plucky polite proud quick quiet ready rosy
serene sharp silent sincere smart solid spry steady sunny swift tender tidy trusty upbeat vivid
warm wise witty zesty
"""

#: People who studied layers of one kind or another: rocks, soils, trees, paint, manuscripts, signals.
_PEOPLE = """
agassiz anning bascom bragg cuvier darcy dokuchaev douglass eskola fourier gauss geikie goldschmidt
hall haller hess holmes humboldt hutton jeffreys kirwan kubiena lachmann lavoisier lehmann
lyell maillet marr mawson milankovitch mohorovicic murchison noether oldham palissy playfair ramsay
schuchert sedgwick shannon smith steno suess tharp treibs tyrrell ussher vernadsky walther wegener
werner winchell zirkel
"""


def new_id() -> str:
    """A new container ID: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def short(identifier: str) -> str:
    """The twelve digits that are shown of an ID; a leading `sha256:` is dropped."""
    return identifier.removeprefix("sha256:")[:12]


def random_name(taken: Container[str]) -> str:
    """A name such as `calm_steno` that is not in `taken`."""
    for _ in range(50):
        name = f"{secrets.choice(_MOODS.split())}_{secrets.choice(_PEOPLE.split())}"
        if name not in taken:
            return name
    return f"{name}{secrets.randbelow(1_000_000)}"


def check_name(name: str, what: str = "container") -> str:
    """`name` itself, when it may be a container's or a volume's name; docker's rule.

    Raises RuntimeFailure when it may not.
    """
    if not _VALID.fullmatch(name):
        raise RuntimeFailure(f"Invalid {what} name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name
