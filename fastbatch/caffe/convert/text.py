"""The positions of fields in the text of a prototxt, so that a part can change and every other character stays.

Caffe decides what a prototxt means. `fields` reads only text that Caffe has accepted, and knows only as much of the
text format as it needs to find the ends of a field. Tokens are those of protobuf's C++ tokenizer, which Caffe uses
(google/protobuf/io/tokenizer.cc, as text_format.cc configures it), not those of the Python one: spaces may follow a
minus sign, and a number may end in f.
"""

import re
from typing import NamedTuple, Optional

_STRING = "|".join(rf"{quote}(?:\\.|[^{quote}\\\n])*{quote}" for quote in "\"'")
SPACE = " \t\n\r\v\f"  # what separates tokens, and nothing else: to C++, a no-break space is not a space
_BLANKS = (
    rf"(?:[{SPACE}]|#[^\n]*(?:\n|\Z))*"  # a comment to the end of its line: ###### is one, and not any number of them
)
_BLANK = re.compile(_BLANKS)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = r"0[xX][0-9a-fA-F]+|0[0-7]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?"
_SCALAR = re.compile(rf"(?:{_STRING})(?:{_BLANKS}(?:{_STRING}))*|(?:-{_BLANKS})?(?:{_NUMBER}|{_NAME.pattern})")
_LINE = re.compile(rf"((?:[^#\"']|{_STRING})*)(#.*)?$")
_CLOSING = {"{": "}", "<": ">"}
_DEEPEST = 100  # as protobuf reads binary messages


class Field(NamedTuple):
    """One field, `name: value` or `name { ... }`.

    Each element of `name: [a, b]` is a Field; all of them begin and end with the whole list.
    """

    name: str
    start: int  # where its name begins
    end: int  # behind its value, and behind the ; or , that may follow
    value_start: int  # of a message: where its bracket opens
    value_end: int
    fields: Optional[tuple["Field", ...]]  # what a message holds; None of a scalar

    def named(self, *names):
        """The fields of these names in this message, in their order."""
        return [field for field in self.fields or () if field.name in names]


def fields(text):
    """The fields of a whole prototxt, as a tuple. Raises ValueError for some invalid texts, but not for all."""
    found, end = _fields(text, 0, "", 0)
    if end != len(text):
        raise ValueError(f"character {end} of the text begins no field: {text[end : end + 20]!r}")
    return found


def replaced(text, edits):
    """`text` with each (start, end, new) of `edits` applied. Edits may not overlap; equal edits count once."""
    done, parts = 0, []
    for start, end, new in sorted(set(edits)):
        if start < done:
            raise ValueError(f"two edits of characters {start} to {end}")
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]])


def replacing(text, old, new=""):
    """The edits that put `new` in place of the first of the Fields `old`, and remove all of them.

    A line that holds nothing else is removed too. Comments stay.
    """
    runs = []
    for start, end in sorted({(field.start, field.end) for field in old}):
        if runs and not text[runs[-1][1] : start].strip(SPACE):
            runs[-1][1] = end
        else:
            runs.append([start, end])
    edits = [(*runs.pop(0), new)] if new and runs else []
    return edits + [(*_with_its_line(text, start, end), "") for start, end in runs]


def indent(text, position):
    """The spaces at the beginning of the line around `position`."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(SPACE))]


def newline(text):
    r"""How its lines end: "\n" or "\r\n"."""
    return "\r\n" if "\r\n" in text else "\n"


def code_and_comment(line):
    """Split a line into code and comment, which begins with # or is empty. Neither ends in a space."""
    code, comment = _LINE.match(line.rstrip(SPACE)).groups()
    return code.rstrip(SPACE), comment or ""


def message(name, items, before, multiline, end_of_line):
    """`name { items }`, on separate lines or on one; `before` is the beginning of its line."""
    if not multiline:
        return f"{name} {{ {' '.join(items)} }}"
    return end_of_line.join([f"{name} {{", *(f"{before}  {item}" for item in items), f"{before}}}"])


def _with_its_line(text, start, end):
    left = text.rfind("\n", 0, start) + 1
    right = text.find("\n", end) + 1 or len(text)
    if not (text[left:start] + text[end:right]).strip(SPACE):
        return left, right
    while text[end : end + 1] in (" ", "\t"):
        end += 1
    if text[end : end + 1] in ("", "\r", "\n"):  # nor leave spaces at the end of a line
        while text[start - 1 : start] in (" ", "\t"):
            start -= 1
    return start, end


def _skip(text, position):
    return _BLANK.match(text, position).end()


def _fields(text, position, closing, depth):
    """The fields up to the bracket `closing`, and its position. Without that bracket, up to the end of the text."""
    found = []
    position = _skip(text, position)
    while position < len(text) and text[position] != closing:
        start = position
        name = _match(_NAME, text, position)
        position = _skip(text, name.end())
        if text[position : position + 1] == ":":
            position = _skip(text, position + 1)
        values, position = _values(text, position, depth)
        after = _skip(text, position)
        if text[after : after + 1] in (";", ","):
            position = after + 1
        found += [Field(name[0], start, position, *value) for value in values]
        position = _skip(text, position)
    return tuple(found), position


def _values(text, position, depth):
    if text[position : position + 1] != "[":
        value = _value(text, position, depth)
        return [value], value[1]
    values = []
    while text[position] != "]":
        position = _skip(text, position + 1)  # behind the [ or the ,
        if text[position : position + 1] != "]":
            values.append(_value(text, position, depth))
            position = _skip(text, values[-1][1])
        if text[position : position + 1] not in (",", "]"):
            raise ValueError(f"a list has no end at character {position}")
    return values, position + 1


def _value(text, position, depth):
    """(start, end, fields) of a value that is nested in `depth` messages."""
    closing = _CLOSING.get(text[position : position + 1])
    if closing is None:
        return position, _match(_SCALAR, text, position).end(), None
    if depth == _DEEPEST:
        raise ValueError(f"its messages are nested more than {_DEEPEST} deep at character {position}")
    inner, end = _fields(text, position + 1, closing, depth + 1)
    if end == len(text):
        raise ValueError(f"the bracket at character {position} is not closed")
    return position, end + 1, inner


def _match(pattern, text, position):
    match = pattern.match(text, position)
    if match is None:
        raise ValueError(f"neither a name nor a value at character {position}: {text[position : position + 20]!r}")
    return match
