from __future__ import annotations

import pytest

from runtime.errors import RuntimeFailure
from runtime.images.platforms import Platform, choose, parse_platform


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("Windows/x86_64", Platform("windows", "amd64")),
    ],
)
def test_a_platform_is_read_as_docker_does(text: str, platform: Platform) -> None:
    assert parse_platform(text) == platform
    assert parse_platform(str(platform)) == platform


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/arm/v7/x", "li nux/arm"])
def test_what_is_no_platform_is_named(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="invalid platform") as failure:
        parse_platform(text)
    assert repr(text) in failure.value.message


def platforms(*texts: str) -> list[Platform | None]:
    return [parse_platform(text) if text else None for text in texts]


@pytest.mark.parametrize(
    ("offered", "wanted", "place"),
    [
        (("arm64", "amd64"), "amd64", 1),
        (("linux/arm/v5", "linux/arm/v7", "linux/arm/v6"), "linux/arm/v7", 1),
        (("linux/arm/v5", "linux/arm/v7", "linux/arm/v6"), "linux/arm/v6", 2),
        (("linux/arm64/v8",), "arm64", 0),
        (("amd64", "linux/amd64/v3"), "amd64", 0),
        (("amd64", "linux/amd64/v3"), "linux/amd64/v3", 1),
        (("amd64", "amd64"), "amd64", 0),
        (("", "amd64"), "amd64", 1),
        (("", "arm64"), "amd64", 0),
        (("arm64", "unknown/unknown"), "amd64", None),
        (("linux/arm/what", "linux/arm/v99999"), "arm", None),
        ((), "amd64", None),
    ],
)
def test_the_best_that_runs_is_chosen(offered: tuple[str, ...], wanted: str, place: int | None) -> None:
    assert choose(platforms(*offered), parse_platform(wanted)) == place
