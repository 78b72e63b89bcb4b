"""Dockerfiles as text: what they say, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.build.dockerfile import DockerfileError, parse
from runtime.build.ignore import Patterns, read
from runtime.build.settings import Settings, changer
from runtime.build.stages import plan
from runtime.build.words import expand, expand_unquoted, expand_words
from runtime.errors import RuntimeFailure


def texts(dockerfile: str) -> list[tuple[str, str]]:
    return [(one.name, one.text) for one in parse(dockerfile.encode(), "Dockerfile").instructions]


def settled(*lines: str, **document: Any) -> dict[str, Any]:
    settings = Settings({"config": {}, **document})
    for one in parse("\n".join(lines).encode(), "Dockerfile").instructions:
        settings.apply(one)
    return settings.document


def failure(dockerfile: str) -> str:
    with pytest.raises(DockerfileError) as caught:
        plan(parse(dockerfile.encode(), "Dockerfile"), {})
    return caught.value.message


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [
        ("from a\nrun  b  c ", [("FROM", "a"), ("RUN", "b  c")]),
        ("FROM a\r\nRUN b\r\n", [("FROM", "a"), ("RUN", "b")]),
        ("\ufeffFROM a", [("FROM", "a")]),
        ("FROM a\nRUN b \\\n  c \\\n\n# no\n  # no\n  d", [("FROM", "a"), ("RUN", "b   c   d")]),
        ("FROM a\nRUN b \\  \nc", [("FROM", "a"), ("RUN", "b c")]),
        ("FROM a\nRUN b\\\\\nRUN c", [("FROM", "a"), ("RUN", "b\\\\"), ("RUN", "c")]),
        ("# escape=`\nFROM a\nRUN b `\nc:\\", [("FROM", "a"), ("RUN", "b c:\\")]),
        ("#syntax = x/y:1\n# ESCAPE = `\nFROM a`\nb", [("FROM", "ab")]),
        ("# a comment\n# escape=`\nFROM a\nRUN b \\\nc", [("FROM", "a"), ("RUN", "b c")]),
        ("   # indented\n  FROM a", [("FROM", "a")]),
        ("FROM a\nRUN b # not a comment", [("FROM", "a"), ("RUN", "b # not a comment")]),
        ("FROM a\nRUN x \\", [("FROM", "a"), ("RUN", "x")]),
    ],
)
def test_lines(dockerfile: str, expected: list[tuple[str, str]]) -> None:
    assert texts(dockerfile) == expected


def test_flags_json_and_places() -> None:
    found = parse(b'FROM a\n\nCOPY --from=b --chown=1:2 --link \\\n  ["x y", "z"]\n', "D").instructions[1]
    assert (found.flag("from"), found.flag("chown"), found.switch("link")) == ("b", "1:2", True)
    assert found.json == ("x y", "z")
    assert (found.line, found.last) == (3, 4)
    run = parse(
        b"FROM a\nRUN --mount=type=tmpfs,target=/x --mount=type=cache,target=/y -- c", "D"
    ).instructions[1]
    assert run.all("mount") == ["type=tmpfs,target=/x", "type=cache,target=/y"]
    assert run.text == "c"
    broken = parse(b"FROM a\nCMD ['single']", "D").instructions[1]
    assert broken.json is None


def test_heredocs() -> None:
    text = 'FROM a\nRUN <<A cat <<-"B" && c\n one\nA\n\ttwo $x\n\tB\nCOPY <<f /to/\n${v}\\\nf\nRUN end'
    run, copy, end = parse(text.encode(), "D").instructions[1:]
    assert [(one.name, one.text, one.expand) for one in run.heredocs] == [
        ("A", " one\n", True),
        ("B", "two $x\n", False),
    ]
    assert copy.heredocs[0].text == "${v}\\\n"
    assert (end.text, end.line) == ("end", 10)


@pytest.mark.parametrize(
    ("dockerfile", "message", "caret"),
    [
        ("FROM a\nRUNN b", "Dockerfile:2: unknown instruction: RUNN (did you mean RUN?)", "^^^^"),
        ("FROM a\n  COPY --form=b c d", "COPY: unknown flag: --form (did you mean --from?)", "^^^^^^"),
        ("FROM a\nCOPY --from b d", "COPY: missing a value on flag: --from", "^^^^^^"),
        ("FROM a\nCOPY --from=b --from=c d", "duplicate flag: --from", "^^^^^^^^"),
        ("FROM a\nRUN <<EOF\nx", "unterminated heredoc: no line 'EOF' ends it", "^^^^^"),
        ("FROM a\nRUN", "RUN requires at least one argument", "^^^"),
        ("RUN a", "no build stage in current context", "^^^"),
        ("FROM a AS", "FROM: requires IMAGE or IMAGE AS NAME", "^^^^"),
        ("FROM a AS 1", "invalid name for build stage: '1'", "^"),
        ("FROM a AS b\nFROM c AS B", "duplicate name 'b'", "^"),
        ("FROM ${x}", "base name (${x}) should not be blank", "^^^^"),
        ("# escape=x\nFROM a", "invalid escape 'x'", "^"),
        ("FROM --platform=linux/none a", "linux/none cannot be built here", "^^^^^^^^^^"),
        ("ARG a=${\nFROM a", "bad substitution", "^^^^"),
    ],
)
def test_faults_are_shown_at_their_place(dockerfile: str, message: str, caret: str) -> None:
    text = failure(dockerfile)
    assert message in text
    _, shown, marks = text.split("\n")
    place = marks.index("^") - marks.index("|")
    line = shown[shown.index("|") + place :]
    assert marks.strip("| ") == caret
    assert len(line) >= len(caret)


def test_what_is_no_dockerfile() -> None:
    for data, words in ((b"", "has no instructions"), (b"FROM \xff", "D:1: not UTF-8")):
        with pytest.raises(RuntimeFailure, match=words):
            parse(data, "D")


VARIABLES = {"v": "value", "empty": "", "path": "/a/b/c.tar.gz", "two": "a b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$v ${v}s $vs", "value values "),
        ("'$v' \"$v\" \\$v", "$v value $v"),
        ('"a\\"b" \'a\\b\' "a\\b"', 'a"b a\\b a\\b'),
        ("${v:-d} ${no:-d} ${empty:-d} ${empty-d} ${no-d}", "value d d  d"),
        ("${v:+d} ${no:+d} ${empty:+d} ${empty+d}", "d   d"),
        ("${v:?bad} ${empty?bad}", "value "),
        ("${no:-${v}} ${no:-'${v}'} ${no:-$no}", "value ${v} "),
        ("${path#*/} ${path##*/} ${path%.*} ${path%%.*}", "a/b/c.tar.gz c.tar.gz /a/b/c.tar /a/b/c"),
        ("${path#x} ${path%?z}", "/a/b/c.tar.gz /a/b/c.tar."),
        ("${path/b/X} ${path//\\//_} ${path/a*c/-}", "/a/X/c.tar.gz _a_b_c.tar.gz /-.tar.gz"),
        ("$ a$ $1 $", "$ a$  $"),
        ("\\\\ \\a", "\\ a"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${no:?is missing}", "no: is missing"),
        ("${v", "unsupported modifier"),
        ("${}", "bad substitution"),
        ("'a", "single-quote"),
        ('"a', "double-quote"),
        ("${v:-x", "missing '}'"),
        ("${v!x}", "unsupported modifier"),
    ],
)
def test_expansions_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(RuntimeFailure, match=words.replace("$", "\\$")):
        expand(text, VARIABLES)


def test_words_are_split_where_they_are_not_quoted() -> None:
    assert expand_words("a  $two \"$two\" '' x${two}y", VARIABLES) == ["a", "a", "b", "a b", "", "xa", "by"]
    assert expand_unquoted("\"$v\" '$v' \\$v \\n `x`", VARIABLES) == "\"value\" 'value' $v \\n `x`"


def test_settings() -> None:
    document = settled(
        "ENV a=1 b='x y' c=\"$a\"",
        "ENV old form  is kept",
        "ENV a=2 d=$a",
        'LABEL "my key"="v 1" other=$b',
        "EXPOSE 80 53/UDP 8000-8002 $a",
        "VOLUME /a /b",
        'VOLUME ["/c d"]',
        "WORKDIR /x",
        "WORKDIR y/../z",
        "USER alice:$a",
        "STOPSIGNAL SIGINT",
        'SHELL ["/bin/ash", "-c"]',
        "CMD echo $HOME",
        'ENTRYPOINT ["a", "b"]',
        "MAINTAINER Some One",
        "ONBUILD RUN x",
        "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl x",
    )
    assert document["author"] == "Some One"
    assert document["config"] == {
        "Env": ["a=2", "b=x y", "c=", "old=form  is kept", "d=1"],
        "Labels": {"my key": "v 1", "other": "x y"},
        "ExposedPorts": {
            f"{port}": {} for port in ("80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp", "2/tcp")
        },
        "Volumes": {"/a": {}, "/b": {}, "/c d": {}},
        "WorkingDir": "/x/z",
        "User": "alice:2",
        "StopSignal": "SIGINT",
        "Shell": ["/bin/ash", "-c"],
        "Cmd": ["/bin/ash", "-c", "echo $HOME"],
        "Entrypoint": ["a", "b"],
        "OnBuild": ["RUN x"],
        "Healthcheck": {
            "Test": ["CMD-SHELL", "curl x"],
            "Interval": 90 * 10**9,
            "Timeout": 500 * 10**6,
            "Retries": 3,
        },
    }


def test_an_entrypoint_drops_the_command_of_the_image_below() -> None:
    assert settled('ENTRYPOINT ["e"]', config={"Cmd": ["c"]})["config"] == {"Entrypoint": ["e"]}
    assert settled("HEALTHCHECK NONE", "CMD []", config={"Cmd": ["c"]})["config"] == {
        "Healthcheck": {"Test": ["NONE"]}
    }


@pytest.mark.parametrize(
    "line",
    [
        "ENV a",
        "ENV a=1 b",
        "ENV =1",
        "LABEL a=1 'b",
        "EXPOSE 0",
        "EXPOSE 70000",
        "EXPOSE 10-5",
        "EXPOSE 80/icmp",
        "STOPSIGNAL SIGNOTHING",
        "SHELL /bin/sh",
        "ONBUILD ONBUILD RUN x",
        "ONBUILD FROM x",
        "HEALTHCHECK RUN x",
        "HEALTHCHECK CMD",
        "HEALTHCHECK --interval=5 CMD x",
        "HEALTHCHECK --retries=x CMD y",
        "VOLUME ['a']",
        "USER $nobody",
    ],
)
def test_settings_that_are_refused(line: str) -> None:
    with pytest.raises(DockerfileError):
        settled(line)


def test_changes() -> None:
    document: dict[str, Any] = {"config": {"Env": ["A=1"]}}
    changer(["ENV B=$A", "CMD x", "label a=b"])(document)
    assert document["config"] == {"Env": ["A=1", "B=1"], "Cmd": ["/bin/sh", "-c", "x"], "Labels": {"a": "b"}}
    with pytest.raises(RuntimeFailure, match="RUN is not a valid change command"):
        changer(["RUN x"])


def test_a_target_needs_only_what_it_is_made_of() -> None:
    text = (
        "ARG B=busybox\nFROM $B AS one\nFROM one AS two\nFROM scratch AS three\nCOPY --from=0 a b\n"
        "FROM four.io/x AS four\nRUN --mount=type=bind,from=two,target=/x y\nFROM three"
    )
    found = plan(parse(text.encode(), "D"), {"B": "other"})
    assert [stage.number for stage in found.needed(found.target(""))] == [0, 2, 4]
    assert [stage.number for stage in found.needed(found.target("FOUR"))] == [0, 1, 3]
    assert found.stages[0].base == "other"
    with pytest.raises(RuntimeFailure, match="'none' could not be found: there are one, two, three, four, 4"):
        found.target("none")


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["*.log"], ["a.log"], ["d/a.log", "a.logs"]),
        (["**/*.log"], ["a.log", "d/e/a.log"], ["a.txt"]),
        (["/build/"], ["build", "build/x"], ["src/build"]),
        (["a/**/z"], ["a/z", "a/b/c/z"], ["a/zz"]),
        (["*", "!src", "src/tmp"], ["x", "src/tmp/y"], ["src", "src/a"]),
        (["a?", "[b-d]x", "[^e]y"], ["ab", "cx", "ay"], ["a", "ex", "ey"]),
        (["**"], ["a", "a/b"], []),
        (["./x/../y"], ["y"], ["x"]),
        (["a\\*b"], ["a*b"], ["axb"]),
    ],
)
def test_ignored(patterns: list[str], ignored: list[str], kept: list[str]) -> None:
    found = Patterns(patterns, ".dockerignore")
    assert [path for path in ignored + kept if found.match(path)] == ignored


def test_ignore_files_have_comments() -> None:
    found = read(b"# no\n\n  a  \n!a/b\r\n", ".dockerignore")
    assert found.match("a") and not found.match("a/b") and not found.match("# no")
    with pytest.raises(RuntimeFailure, match=r"\.dockerignore: '\[' is not a pattern"):
        read(b"[", ".dockerignore")
