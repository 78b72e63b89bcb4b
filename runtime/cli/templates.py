"""Go's templates as far as --format needs them (pkg.go.dev/text/template), over what JSON can hold.

There are fields, variables, pipelines, parentheses, `if`, `else`, `range`, `with`, comments, trimming, Go's
own functions, and docker's: json, prettyjson, join, split, lower, upper, title, pad, truncate, println. Not
there: `define`, `template`, `block` and methods.

A template is parsed to functions once and rendered for each row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import RuntimeFailure

_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"^\s*/\*.*\*/\s*$", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<number>-?\d+(?:\.\d+)?)
      | (?P<field>\.[A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*)
      | (?P<dot>\.)
      | (?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<mark>:=|[()|=,])
    )""",
    re.VERBOSE,
)


@dataclass
class _Scope:
    """What a piece of a template needs to be rendered: the dot and the variables."""

    dot: Any
    variables: list[dict[str, Any]]

    def get(self, name: str) -> Any:
        for frame in reversed(self.variables):
            if name in frame:
                return frame[name]
        raise RuntimeFailure(f"template: undefined variable '{name}'")

    def assign(self, name: str, value: Any) -> None:
        for frame in reversed(self.variables):
            if name in frame:
                frame[name] = value
                return
        raise RuntimeFailure(f"template: undefined variable '{name}'")


_Value = Callable[[_Scope], Any]
_Piece = Callable[[_Scope], str]


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        r"""`\t` and `\n` outside of actions are what they say, as docker has it.

        Raises RuntimeFailure when the text is no template of the kind above.
        """
        self._parts = list(_split(text))
        self._place = 0
        self._pieces, closing = self._block()
        if closing is not None:
            raise RuntimeFailure(f"template: unexpected {{{{{closing}}}}}")

    def render(self, values: Any) -> str:
        """The text with `values` for the dot.

        Raises RuntimeFailure for a field that they have not, or a function that cannot take what it gets.
        """
        scope = _Scope(values, [{"$": values}])
        return "".join(piece(scope) for piece in self._pieces)

    def _block(self) -> tuple[list[_Piece], str | None]:
        """Pieces up to the `end` or `else` of an enclosing action, and that one's words."""
        pieces: list[_Piece] = []
        while self._place < len(self._parts):
            is_action, text = self._parts[self._place]
            self._place += 1
            word = text.split(maxsplit=1)[0] if text.strip() else ""
            if not is_action:
                pieces.append(lambda scope, text=text: text)  # type: ignore[misc]
            elif word in ("end", "else"):
                return pieces, text.strip()
            elif word in ("if", "with", "range"):
                pieces.append(self._control(word, text.split(maxsplit=1)[1] if " " in text.strip() else ""))
            else:
                pieces.append(_action(text))
        return pieces, None

    def _control(self, word: str, condition: str) -> _Piece:
        names, source = _declaration(condition)
        body, closing = self._block()
        otherwise: list[_Piece] = []
        if closing is not None and closing.startswith("else "):  # else if, else with
            _, _, rest = closing.partition(" ")
            nested, _, nested_condition = rest.strip().partition(" ")
            otherwise = [self._control(nested, nested_condition)]
            closing = "end"
        elif closing == "else":
            otherwise, closing = self._block()
        if closing != "end":
            raise RuntimeFailure(f"template: {{{{{word}}}}} without {{{{end}}}}")
        render = {"if": _if, "with": _with, "range": _range}[word]
        return lambda scope: render(scope, names, source(scope), body, otherwise)


def _if(scope: _Scope, names: list[str], value: Any, body: list[_Piece], otherwise: list[_Piece]) -> str:
    frame = dict.fromkeys(names, value)
    return _inner(scope, scope.dot, frame, body if _true(value) else otherwise)


def _with(scope: _Scope, names: list[str], value: Any, body: list[_Piece], otherwise: list[_Piece]) -> str:
    frame = dict.fromkeys(names, value)
    return _inner(scope, value if _true(value) else scope.dot, frame, body if _true(value) else otherwise)


def _range(scope: _Scope, names: list[str], value: Any, body: list[_Piece], otherwise: list[_Piece]) -> str:
    items: list[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = sorted(value.items())
    elif isinstance(value, int) and not isinstance(value, bool):
        items = [(number, number) for number in range(value)]
    elif value is None or (isinstance(value, Sequence) and not isinstance(value, str)):
        items = list(enumerate(value or ()))
    else:
        raise RuntimeFailure(f"template: range can't iterate over {_shown(value)}")
    if not items:
        return _inner(scope, scope.dot, {}, otherwise)
    lines = []
    for key, item in items:
        pair = (item,) if len(names) == 1 else (key, item)
        lines.append(_inner(scope, item, dict(zip(names, pair, strict=False)), body))
    return "".join(lines)


def _inner(scope: _Scope, dot: Any, frame: dict[str, Any], pieces: list[_Piece]) -> str:
    inner = _Scope(dot, [*scope.variables, frame])
    return "".join(piece(inner) for piece in pieces)


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """The text between actions, and the actions, as (is an action, text)."""
    place, trim = 0, False
    for match in _ACTION.finditer(text):
        before = text[place : match.start()]
        if trim:
            before = before.lstrip()
        if match[1]:
            before = before.rstrip()
        yield False, _unescaped(before, text)
        if not _COMMENT.match(match[2]):
            yield True, match[2].strip()
        place, trim = match.end(), bool(match[3])
    rest = text[place:]
    yield False, _unescaped(rest.lstrip() if trim else rest, text)


def _unescaped(text: str, whole: str) -> str:
    if "{{" in text:
        raise RuntimeFailure(f"template: unclosed action in '{whole}'")
    return text.replace(r"\t", "\t").replace(r"\n", "\n")


def _action(text: str) -> _Piece:
    names, value = _declaration(text)
    if names:

        def declare(scope: _Scope) -> str:
            result = value(scope)
            for name in names:
                scope.variables[-1][name] = result
            return ""

        return declare
    match = re.match(r"(\$\w+)\s*=\s*(.+)", text, re.DOTALL)
    if match:
        name, assigned = match[1], _pipeline(match[2])

        def assign(scope: _Scope) -> str:
            scope.assign(name, assigned(scope))
            return ""

        return assign
    return lambda scope: _shown(value(scope))


def _declaration(text: str) -> tuple[list[str], _Value]:
    """`$a, $b := PIPELINE` as names and pipeline; without names where there are none."""
    match = re.match(r"\s*(\$\w+)\s*(?:,\s*(\$\w+)\s*)?:=(.*)", text, re.DOTALL)
    if match:
        return [name for name in match.groups()[:2] if name], _pipeline(match[3])
    if re.match(r"\$\w+\s*=[^=]", text):
        return [], lambda scope: None
    return [], _pipeline(text)


class _Parser:
    """Parses one pipeline."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None or match.lastgroup is None:
                raise RuntimeFailure(f"template: unexpected {text[place:].strip()[:20]!r} in {{{{{text}}}}}")
            # Whether white space stands before it: `(x).Field` is a field of x, `x .Field` two words.
            glued = match.start(match.lastgroup) == place and place > 0
            kind = (
                "chain"
                if match.lastgroup == "field" and glued and text[place - 1] == ")"
                else match.lastgroup
            )
            self._tokens.append((kind, match[match.lastgroup]))
            place = match.end()
        self._place = 0

    def whole(self) -> _Value:
        value = self._pipeline()
        if self._place < len(self._tokens):
            raise self._unexpected()
        return value

    def _pipeline(self) -> _Value:
        value = self._command(None)
        while self._peek() == ("mark", "|"):
            self._place += 1
            value = self._command(value)
        return value

    def _command(self, piped: _Value | None) -> _Value:
        kind, text = self._peek()
        if kind == "word" and text not in ("true", "false", "nil"):
            self._place += 1
            function = _FUNCTIONS.get(text)
            if function is None:
                raise RuntimeFailure(
                    f"template: function '{text}' is not there; there are: {', '.join(sorted(_FUNCTIONS))}"
                )
            arguments = []
            while self._peek()[0] not in ("", "mark") or self._peek() == ("mark", "("):
                arguments.append(self._operand())
            if piped is not None:
                arguments.append(piped)
            return _call(text, function, arguments)
        if piped is not None:
            raise RuntimeFailure(f"template: what stands behind a | must be a function: {{{{{self._text}}}}}")
        return self._operand()

    def _operand(self) -> _Value:
        kind, text = self._peek()
        self._place += 1
        if kind == "string":
            string = text[1:-1] if text.startswith("`") else json.loads(text)
            return lambda scope: string
        if kind == "number":
            number = float(text) if "." in text else int(text)
            return lambda scope: number
        if kind == "word" and text in ("true", "false", "nil"):
            constant = {"true": True, "false": False, "nil": None}[text]
            return lambda scope: constant
        if kind == "word":
            self._place -= 1
            return self._command(None)
        if kind == "dot":
            return lambda scope: scope.dot
        if kind == "field":
            return lambda scope: _field(scope.dot, text)
        if kind == "variable":
            name, dot, rest = text.partition(".")
            return lambda scope: _field(scope.get(name), dot + rest)
        if (kind, text) == ("mark", "("):
            inner = self._pipeline()
            if self._peek() != ("mark", ")"):
                raise self._unexpected()
            self._place += 1
            if self._peek()[0] == "chain":
                path = self._peek()[1]
                self._place += 1
                return lambda scope: _field(inner(scope), path)
            return inner
        self._place -= 1
        raise self._unexpected()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("", "")

    def _unexpected(self) -> RuntimeFailure:
        what = self._peek()[1] or "end"
        return RuntimeFailure(f"template: unexpected {what} in {{{{{self._text}}}}}")


def _pipeline(text: str) -> _Value:
    return _Parser(text).whole()


def _field(value: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        if not isinstance(value, Mapping) or part not in value:
            known = f"; there are: {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            raise RuntimeFailure(f"template: no field {part!r} in {path!r}{known}")
        value = value[part]
    return value


def _call(name: str, function: Callable[..., Any], arguments: list[_Value]) -> _Value:
    def call(scope: _Scope) -> Any:
        if name in ("and", "or"):  # which look no further than they must
            value: Any = None
            for argument in arguments:
                value = argument(scope)
                if _true(value) is (name == "or"):
                    break
            return value
        try:
            return function(*(argument(scope) for argument in arguments))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise RuntimeFailure(f"template: error calling {name}: {error}") from error

    return call


def _true(value: Any) -> bool:
    """Go's truth: not nil, zero or empty."""
    return bool(value)


def _shown(value: Any) -> str:
    """A value as Go prints it."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{' '.join(map(_shown, value))}]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, "")
        else:
            if not isinstance(key, int) or not 0 <= key < len(value):
                raise ValueError(f"index out of range: {key}")
            value = value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        verb = match[2]
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        if verb == "q":
            return f"%{match[1]}s" % json.dumps(_shown(value), ensure_ascii=False)
        if verb in "sv":
            return f"%{match[1]}s" % _shown(value)
        if verb == "t":
            return _shown(bool(value))
        return str(f"%{match[1]}{verb}" % value)

    return re.sub(r"%([-+ #0]*\d*(?:\.\d+)?)([sdvqtfxXgeo%])", one, form)


def _equal(first: Any, *others: Any) -> bool:
    return any(type(first) is type(other) and first == other for other in others)


def _join(values: Sequence[Any] | None, separator: str) -> str:
    if isinstance(values, str):
        raise TypeError("a string is no list")
    return separator.join(map(_shown, values or ()))


def _truncate(text: str, length: int) -> str:
    return text[:length]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: None,
    "or": lambda *values: None,
    "not": lambda value: not _true(value),
    "eq": _equal,
    "ne": lambda one, other: not _equal(one, other),
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "index": _index,
    "len": len,
    "slice": lambda value, *ends: value[slice(*ends)] if len(ends) > 1 else value[ends[0] :],
    "print": lambda *values: " ".join(map(_shown, values)),
    "println": lambda *values: " ".join(map(_shown, values)) + "\n",
    "printf": _printf,
    "json": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "prettyjson": lambda value: json.dumps(value, indent=4, ensure_ascii=False),
    "join": _join,
    "split": lambda text, separator: text.split(separator),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "truncate": _truncate,
}


def fields(text: str) -> list[str]:
    """The fields of the dot that each column of a `table` template shows; "" for one that shows no field.

    Columns are separated by tabs.
    """
    found = []
    for column in text.replace(r"\t", "\t").split("\t"):
        match = re.search(r"\{\{[^}]*?\.([A-Za-z_][\w.]*)", column)
        found.append(match[1] if match else "")
    return found
