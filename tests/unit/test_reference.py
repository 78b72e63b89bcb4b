from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RuntimeFailure
from runtime.images.reference import parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("host:5000/x", "host:5000/x:latest", "host:5000/x:latest"),
        ("host:5000/x/y:t", "host:5000/x/y:t", "host:5000/x/y:t"),
        ("example.org/x:t", "example.org/x:t", "example.org/x:t"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"b:t@{DIGEST}", f"docker.io/library/b:t@{DIGEST}", f"b:t@{DIGEST}"),
        ("a__b--c.d", "docker.io/library/a__b--c.d:latest", "a__b--c.d:latest"),
    ],
)
def test_a_name_is_normalised_as_docker_does(text: str, full: str, familiar: str) -> None:
    assert str(parse(text)) == full
    assert parse(text).familiar == familiar
    assert parse(full) == parse(familiar) == parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing"),
        ("Busybox", "lower-case"),
        ("busybox:", "the tag"),
        ("busybox:" + "a" * 129, "the tag"),
        ("a//b", "repository name"),
        ("a..b", "repository name"),
        ("-a", "repository name"),
        ("../a", "host name"),
        ("a b", "repository name"),
        ("busybox@sha256:12", "digest"),
        ("ab" * 32, "image ID"),
        ("a/" * 130 + "b", "255"),
    ],
)
def test_an_error_names_the_input_and_the_fault(text: str, reason: str) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        parse(text)
    assert repr(text) in failure.value.message
    assert reason in failure.value.message


@given(st.text(alphabet="aB0.-_/:@ \n", max_size=40))
def test_what_is_read_is_written_the_same(text: str) -> None:
    try:
        reference = parse(text)
    except RuntimeFailure:
        return
    assert parse(str(reference)) == reference == parse(reference.familiar)
