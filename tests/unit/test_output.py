from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from runtime.cli.output import ago, formatted, listing, size, table
from runtime.errors import RuntimeFailure

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (61, "About a minute ago"),
        (3500, "58 minutes ago"),
        (3600, "About an hour ago"),
        (47 * 3600, "47 hours ago"),
        (3 * 86400, "3 days ago"),
        (20 * 86400, "2 weeks ago"),
        (100 * 86400, "3 months ago"),
        (1000 * 86400, "2 years ago"),
    ],
)
def test_ages_are_dockers(seconds: int, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_no_age() -> None:
    assert ago(None) == "N/A"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1983456, "1.98MB"), (199_400_000, "199MB"), (5e12, "5TB")],
)
def test_sizes_are_dockers(count: float, text: str) -> None:
    assert size(count) == text


def test_templates() -> None:
    row = {"Name": "n", "Labels": {"a": "b"}}
    assert formatted("{{.Name}}\\t{{ json .Name }} {{.Labels.a}}", row) == 'n\t"n" b'
    assert formatted("json", row) == '{"Name": "n", "Labels": {"a": "b"}}'
    for template in ("{{.Nope}}", "{{.Labels.nope}}", "{{range .Name}}"):
        with pytest.raises(RuntimeFailure, match="template"):
            formatted(template, row)


def test_a_table_of_hostile_text_stays_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    table(["A", "B"], [["x\ny\x1b[2J", "1"], ["é", "22"]])
    assert capsys.readouterr().out == "A             B\nx\\ny\\x1b[2J   1\né             22\n"


def test_a_table_by_template(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ID": "1", "Name": "one"}, {"ID": "22", "Name": "two"}]
    listing(rows, {"IDENTITY": "ID"}, r"table {{.ID}}\t{{.Name}}", None)
    assert capsys.readouterr().out == "IDENTITY   NAME\n1          one\n22         two\n"
