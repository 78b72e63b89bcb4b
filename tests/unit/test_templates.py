"""--format: Go's templates."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cli.templates import Template, fields
from runtime.errors import RuntimeFailure

VALUES: dict[str, Any] = {
    "Name": "/web",
    "State": {"Running": True, "Pid": 12, "Error": ""},
    "Labels": {"b": "2", "a": "1", "with.dot": "x"},
    "Mounts": [{"Source": "/s", "Target": "/t"}, {"Source": "v", "Target": "/u"}],
    "Names": ["one", "two"],
    "Nothing": None,
    "Empty": [],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{.Name}} {{ .State.Pid }}", "/web 12"),
        ("{{.State.Running}}", "true"),
        ("{{.Nothing}}", "<nil>"),
        ("{{.Labels}}", "map[a:1 b:2 with.dot:x]"),
        ("{{.Names}}", "[one two]"),
        ("{{json .Names}}", '["one","two"]'),
        ("{{.Names | json}}", '["one","two"]'),
        ("{{len .Mounts}}", "2"),
        ("{{index .Names 1}}", "two"),
        ('{{index .Labels "with.dot"}}', "x"),
        ('{{index .Labels "absent"}}', ""),
        ("{{(index .Mounts 0).Target}}", "/t"),
        ("{{range .Mounts}}{{.Source}}->{{.Target}};{{end}}", "/s->/t;v->/u;"),
        ("{{range $i, $m := .Mounts}}{{$i}}{{$m.Source}} {{end}}", "0/s 1v "),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}},{{end}}", "a=1,b=2,with.dot=x,"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Error}}bad{{else if .State.Running}}good{{end}}", "good"),
        ('{{if and .State.Running (eq .Name "/web")}}yes{{end}}', "yes"),
        ('{{if or .State.Error (ne .Name "/web")}}yes{{else}}no{{end}}', "no"),
        ("{{with .State}}{{.Pid}}{{end}}", "12"),
        ("{{with $x := .State.Pid}}{{$x}}{{end}}", "12"),
        ("{{$n := .Name}}{{range .Names}}{{$n}}/{{.}} {{end}}", "/web/one /web/two "),
        ("{{$n := 1}}{{$n = 2}}{{$n}}", "2"),
        ("{{range .Mounts}}{{$.Name}}{{end}}", "/web/web"),
        ('{{join .Names ", "}}', "one, two"),
        ('{{.Name | printf "%-6s|%5d" | lower}}', "/web  |%!d(missing)"),
        ('{{printf "%s is %d %q" .Name .State.Pid .Name}}', '/web is 12 "/web"'),
        ("{{upper .Name}}{{title `abc`}}", "/WEBAbc"),
        ('{{index (split .Name "/") 1}}', "web"),
        ("{{slice .Name 1}}", "web"),
        ("{{gt .State.Pid 3}} {{not .State.Error}}", "true true"),
        (r"{{.Name}}\t{{.State.Pid}}\n", "/web\t12\n"),
        ("a {{- .Name -}} b", "a/webb"),
        ("{{/* nothing */}}x", "x"),
        ("{{println .Name}}", "/web\n"),
    ],
)
def test_templates(text: str, expected: str) -> None:
    assert Template(text).render(VALUES) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Absent}}", "no field 'Absent'"),
        ("{{.Name.Inner}}", "no field 'Inner'"),
        ("{{.Name", "unclosed"),
        ("{{nosuch .Name}}", "function 'nosuch'"),
        ("{{if .Name}}", "without {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{.Name ! 1}}", "unexpected"),
        ("{{index .Names 7}}", "out of range"),
        ("{{range .Name}}x{{end}}", "iterate"),
        ("{{$x}}", "undefined variable"),
        ("{{len 3}}", "error calling len"),
        ('{{.Name | "x"}}', "must be a function"),
        ("{{(.Name}}", "unexpected end"),
        ("{{}}", "unexpected end"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(RuntimeFailure, match="template: ") as failure:
        Template(text).render(VALUES)
    assert words in str(failure.value)


def test_the_fields_of_a_tables_columns() -> None:
    assert fields(r"{{.ID}}\t{{json .Names}}\tx\t{{upper .State.Status}}") == [
        "ID",
        "Names",
        "",
        "State.Status",
    ]
