"""Whatever bytes a Dockerfile is made of: it is read, or refused in one clear way."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.build.dockerfile import parse
from runtime.build.ignore import Patterns
from runtime.build.run_mounts import parse as parse_mount
from runtime.build.settings import Settings
from runtime.build.stages import plan
from runtime.build.words import expand, expand_unquoted, expand_words
from runtime.errors import RuntimeFailure

WORDS = st.sampled_from(
    "FROM RUN COPY ADD ENV ARG LABEL CMD ENTRYPOINT EXPOSE VOLUME USER WORKDIR SHELL ONBUILD STOPSIGNAL "
    "HEALTHCHECK MAINTAINER AS NONE scratch a=b a b /x 80 80/tcp 1m -- --from=a --chown=1 "
    "--mount=type=bind,target=/x "
    "--interval=1s # #escape=` \\ ` $ ${ } ${a ${a:-b} ' \" [ ] [\"a\"] <<E <<-'E' E * ** ! ? .. é \t".split(
        " "
    )
)
LINES = st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=6).map(" ".join)
TEXTS = st.lists(LINES, max_size=8).map("\n".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("FROM a\nRUN <<E\n\nE")
@example("#escape=`\nFROM a`")
@example("FROM a\nHEALTHCHECK CMD \nONBUILD CMD")
def test_any_text(text: str) -> None:
    try:
        dockerfile = parse(text.encode("utf-8", "replace"), "Dockerfile")
        stages = plan(dockerfile, {})
        for stage in stages.stages:
            state = Settings({"config": {}})
            stages.needed(stage)
            for instruction in stage.instructions:
                if instruction.name not in ("RUN", "COPY", "ADD", "ARG", "FROM"):
                    state.apply(instruction)
                for mount in instruction.all("mount"):
                    parse_mount(instruction, mount, state)
    except RuntimeFailure as error:
        assert error.message.startswith(("Dockerfile:", "--change"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    try:
        parse(b"FROM a\n" + data, "Dockerfile")
    except RuntimeFailure:
        pass


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=6).map("".join), st.sampled_from("\\`"))
def test_any_word(text: str, escape: str) -> None:
    for function in (expand, expand_words, expand_unquoted):
        try:
            function(text, {"a": "x y", "b": ""}, escape)
        except RuntimeFailure:
            pass


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="a*?[]!^\\/.-", min_size=1, max_size=10),
    st.text(alphabet="ab/*[", min_size=1, max_size=8),
)
def test_any_pattern(pattern: str, path: str) -> None:
    try:
        Patterns([pattern], ".dockerignore").match(path)
    except RuntimeFailure as error:
        assert error.message.startswith(".dockerignore: ")
