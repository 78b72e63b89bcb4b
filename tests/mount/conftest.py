"""Fixtures of the tests on real mounts."""

from support.fixtures import make_union, place

__all__ = ["make_union", "place"]
