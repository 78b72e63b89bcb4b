"""Variables and quotes in the words of instructions, by docker's rules.

Those are a shell's, as far as they go (Dockerfile reference, "Environment replacement"): $name, ${name},
${name:-word}, ${name:+word}, ${name:?word}, the same without the colon, ${name#pattern}, ##, %, %%,
${name/pattern/replacement} and //. Nothing is executed, no file name is matched, and a value is not split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runtime.errors import RuntimeFailure

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
_OPERATORS = ("##", "#", "%%", "%", "//", "/", ":-", ":+", ":?", "-", "+", "?")


def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """One word, whatever spaces its values have, without its quotes.

    Raises RuntimeFailure for what is not closed, not known, or demanded by ${name:?…} and missing.
    """
    return _Expansion(text, variables, escape).run()[0]


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words of `text`, values split at spaces where they are not quoted; raises as `expand`."""
    return _Expansion(text, variables, escape).run()[1]


def expand_unquoted(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """As in a here-document: quotes are characters like all others; raises as `expand`."""
    return _Expansion(text, variables, escape, raw_quotes=True).run()[0]


class _Expansion:
    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, raw_quotes: bool = False
    ) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._raw_quotes = raw_quotes
        self._place = 0
        self._words: list[str] = []
        self._word = ""
        self._begun = False  # a word of nothing but quotes is one

    def run(self) -> tuple[str, list[str]]:
        result = self._until("")
        self._end_word()
        return result, self._words

    def _peek(self) -> str:
        return self._text[self._place : self._place + 1]

    def _take(self) -> str:
        char = self._peek()
        self._place += 1
        return char

    def _end_word(self) -> None:
        if self._word or self._begun:
            self._words.append(self._word)
        self._word, self._begun = "", False

    def _add(self, text: str) -> str:
        self._word += text
        return text

    def _until(self, stop: str) -> str:
        """Up to the character `stop`, which is left; to the end when there is none to stop at."""
        result = ""
        while char := self._peek():
            if char == stop:
                return result
            if char == "'" and not self._raw_quotes:
                result += self._single()
            elif char == '"' and not self._raw_quotes:
                result += self._double()
            elif char == "$":
                value = self._dollar()
                result += value
                pieces = re.split(r"(\s+)", value)
                for piece in pieces:
                    if piece.isspace():
                        self._end_word()
                    else:
                        self._word += piece
            elif char == self._escape:
                self._take()
                if self._raw_quotes and self._peek() not in ("$", self._escape):
                    result += self._add(char)
                else:
                    result += self._add(self._take())
            else:
                self._take()
                result += char
                if char.isspace():
                    self._end_word()
                else:
                    self._word += char
        if stop:
            raise RuntimeFailure(f"syntax error: missing '{stop}'")
        return result

    def _single(self) -> str:
        self._take()
        end = self._text.find("'", self._place)
        if end < 0:
            raise RuntimeFailure("unexpected end of statement while looking for matching single-quote")
        result = self._text[self._place : end]
        self._place = end + 1
        self._begun = True
        return self._add(result)

    def _double(self) -> str:
        self._take()
        self._begun = True
        result = ""
        while char := self._peek():
            if char == '"':
                self._take()
                return result
            if char == "$":
                result += self._add(self._dollar())
                continue
            self._take()
            if char == self._escape and self._peek() in ('"', "$", self._escape):
                char = self._take()
            result += self._add(char)
        raise RuntimeFailure("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        self._take()
        if self._peek() != "{":
            match = _NAME.match(self._text, self._place)
            if not match:
                return "$"
            self._place = match.end()
            return self._variables.get(match[0], "")
        self._take()
        match = _NAME.match(self._text, self._place)
        if not match:
            raise RuntimeFailure("syntax error: bad substitution")
        name = match[0]
        self._place = match.end()
        if self._peek() == "}":
            self._take()
            return self._variables.get(name, "")
        operator = next((known for known in _OPERATORS if self._text.startswith(known, self._place)), "")
        if not operator:
            raise RuntimeFailure(f"unsupported modifier ({self._peek()}) in substitution of {name}")
        self._place += len(operator)
        return self._substituted(name, operator)

    def _inner(self, stop: str) -> str:
        """A word within braces, expanded; it makes no word of its own."""
        words, word, begun = self._words, self._word, self._begun
        self._words, self._word = [], ""
        try:
            return self._until(stop)
        finally:
            self._words, self._word, self._begun = words, word, begun

    def _substituted(self, name: str, operator: str) -> str:
        value = self._variables.get(name)
        if operator in ("/", "//"):
            pattern = self._inner("/")
            self._take()
        word = self._inner("}")
        self._take()
        if operator in ("/", "//"):
            expression = re.compile(_pattern(pattern, greedy=True))
            return expression.sub(lambda _: word, value or "", count=0 if operator == "//" else 1)
        if operator in ("#", "##"):
            return _without_prefix(value or "", word, longest=operator == "##")
        if operator in ("%", "%%"):
            return _without_suffix(value or "", word, longest=operator == "%%")
        given = value is not None and (value != "" or not operator.startswith(":"))
        if operator.endswith("-"):
            return value if given and value is not None else word
        if operator.endswith("+"):
            return word if given else ""
        if not given:
            raise RuntimeFailure(f"{name}: {word or 'not allowed to be unset'}")
        return value or ""


def _pattern(pattern: str, greedy: bool) -> str:
    """A shell's pattern of `*`, `?` and escapes as a regular expression."""
    result, escaped = "", False
    for char in pattern:
        if escaped:
            result += re.escape(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "*":
            result += ".*" if greedy else ".*?"
        else:
            result += "." if char == "?" else re.escape(char)
    return f"(?s:{result})"


def _without_prefix(value: str, pattern: str, longest: bool) -> str:
    match = re.match(_pattern(pattern, greedy=longest), value)
    return value[match.end() :] if match else value


def _without_suffix(value: str, pattern: str, longest: bool) -> str:
    expression = re.compile(_pattern(pattern, greedy=True))
    places = range(len(value) + 1)
    for place in places if longest else reversed(places):
        if expression.fullmatch(value, place):
            return value[:place]
    return value
