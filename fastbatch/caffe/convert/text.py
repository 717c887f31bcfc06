"""Finds the positions of fields in the text of a prototxt, so that a part can change and every other character stays.

Caffe decides what a prototxt means. `fields` reads only text that Caffe has accepted, and implements only as much of
the text format as it needs to find the end of a field. Tokens are those of protobuf's C++ tokenizer, which Caffe uses
(google/protobuf/io/tokenizer.cc, as text_format.cc configures it), not those of the Python one: spaces may follow a
minus sign, and a number may end in f.
"""

import re
from typing import NamedTuple, Optional

_STRING = "|".join(rf"{quote}(?:\\.|[^{quote}\\\n])*{quote}" for quote in "\"'")
SPACE = " \t\n\r\v\f"  # the only characters that separate tokens: to C++, a no-break space is not a space
# What may be between tokens: space, and comments to the end of the line, so that ###### is only one of them.
_GAP = rf"(?:[{SPACE}]|#[^\n]*(?:\n|\Z))*"
_GAP_PATTERN = re.compile(_GAP)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = r"0[xX][0-9a-fA-F]+|0[0-7]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?"
_SCALAR = re.compile(rf"(?:{_STRING})(?:{_GAP}(?:{_STRING}))*|(?:-{_GAP})?(?:{_NUMBER}|{_NAME.pattern})")
_LINE = re.compile(rf"((?:[^#\"']|{_STRING})*)(#.*)?$")
_CLOSING = {"{": "}", "<": ">"}
_DEEPEST = 100  # levels of nesting; protobuf's own limit for binary messages


class Field(NamedTuple):
    """One field, `name: value` or `name { ... }`.

    Each element of `name: [a, b]` is a Field; all of them begin and end with the whole list.
    """

    name: str
    start: int  # of its name
    end: int  # after its value, and after a ; or , that follows
    value_start: int  # for a message, the position of its opening bracket
    value_end: int
    fields: Optional[tuple["Field", ...]]  # of a message; None for a scalar

    def named(self, *names):
        """The fields of this message that have these names, in order."""
        return [field for field in self.fields or () if field.name in names]


def fields(text):
    """The fields of a whole prototxt, as a tuple. Raises ValueError for some invalid texts, not for all."""
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
    """The edits that remove the Fields `old`, and put `new` where the first of them was.

    Lines that would become empty are removed too. Comments stay.
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
    """The indentation of the line around `position`."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(SPACE))]


def newline(text):
    r"""The line ending of a text: "\n" or "\r\n"."""
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
    if text[end : end + 1] in ("", "\r", "\n"):  # leave no spaces at the end of the line
        while text[start - 1 : start] in (" ", "\t"):
            start -= 1
    return start, end


def _skip(text, position):
    return _GAP_PATTERN.match(text, position).end()


def _fields(text, position, closing, depth):
    """The fields up to the bracket `closing` or the end of the text, and the position of that."""
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
        position = _skip(text, position + 1)  # after the [ or the ,
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
