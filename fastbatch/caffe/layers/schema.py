"""The parameters of fastbatch's Caffe layers: Caffe's own messages, and fastbatch's options.

    data_param { source: "train_lmdb" backend: LMDB batch_size: 64 } transform_param { mirror: true } threads: 4

Caffe's messages are written in the layer itself, as for Caffe's own layers, or in param_str. Fastbatch's options are
written in param_str. param_str holds protobuf text, as in a prototxt, or the same as JSON or as a Python dict literal.
For each layer, a small protobuf message is defined at run time, whose fields are Caffe's messages and fastbatch's
options. pycaffe's protobuf library parses it, so that names, types and ranges are checked as strictly as in a prototxt.
Every error is a ValueError that says where, what, and what a correct example looks like.

Only the fields that `reads` lists are accepted. Forks of Caffe have more fields in these messages, and a field that
fastbatch does not implement must not be ignored. Each layer declares its own schema; `python -m fastbatch convert` uses
it too.

Everything here may be called from any thread.
"""

import ast
import difflib
import functools
import json
import math
import re
from typing import NamedTuple

from caffe.proto import caffe_pb2
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from fastbatch._files import quoted
from fastbatch.caffe.layers import forks
from fastbatch.caffe.runtime.layer_param import LayerParam


class Option(NamedTuple):
    """One option of fastbatch's. It is written at the top level of param_str, beside Caffe's messages."""

    name: str
    kind: str  # a scalar type of protobuf's: "bool", "string", "uint32", "uint64", ...
    help: str
    default: object = None  # its value when it isn't written; None: protobuf's default, which is 0, false or ""
    minimum: object = None  # the least value that may be written


class Message(NamedTuple):
    """One of Caffe's messages, and the fields that a layer reads."""

    type: str  # its name in caffe.proto
    reads: tuple[str, ...]  # the fields that have an effect in this layer

    def without(self, *fields):
        """The same message, for a layer that does not read these fields."""
        return self._replace(reads=tuple(name for name in self.reads if name not in fields))


class Schema:
    """The parameters that one layer accepts, in the layer itself and in its param_str.

    layer: the name of the layer's class.
    messages: {"data_param": Message, ...}, Caffe's messages by their names in LayerParameter, that of the layer first.
    options: fastbatch's own, a sequence of Option.
    ignored: {"data_param.scale": why, ...}, fields that Caffe's own layer reads and never uses. They are rejected, and
    convert leaves them out.
    refused: the same for fields that Caffe's own layer rejects.
    absent: {"on_error": why, ...}, options of other layers that make no sense in this one.
    required: fields that must be set, as in ["data_param.source", ...].
    example: a correct param_str.
    """

    def __init__(self, layer, messages, options=(), ignored=(), refused=(), required=(), example="", absent=()):
        self.layer = layer
        self.messages = dict(messages)
        self.options = {option.name: option for option in options}
        self.ignored = dict(ignored)
        self.refused = dict(refused)
        self.absent = dict(absent)
        self.required = tuple(required)
        self.example = example
        self._message_class = None

    def parse(self, param_str, layer_param=LayerParam()):  # noqa: B008 (it is never changed)
        """Return a protobuf message with one field for each of Caffe's messages and each option.

        Fields are read as in Caffe: `parsed.data_param.batch_size`, `parsed.threads`. A field that isn't written has
        its default; `parsed.HasField("threads")` says whether it is written.

        layer_param: a `fastbatch.caffe.runtime.layer_param.LayerParam`. Each of Caffe's messages may be written there
        or in param_str. If it holds no message, only param_str counts. Raises ValueError.
        """
        try:
            return self._parse(param_str, layer_param)
        except _Wrong as wrong:
            raise ParameterError(self._describe(wrong, layer_param), wrong) from None

    def ignored_in(self, parameters):
        """The paths of the `ignored` fields that are set in a caffe_pb2.LayerParameter or in a result of parse()."""
        return [path for path in self.ignored if _is_set(parameters, path)]

    def unimplemented(self, parameters):
        """The paths of the fields that are set but not implemented, such as "data_param.shuffle" in Intel's Caffe.

        parameters: a caffe_pb2.LayerParameter, or a result of parse(). Fields in `ignored` and `refused` are left out.
        """
        return [
            f"{name}.{field.name}"
            for name, message in self.messages.items()
            if name not in self.refused
            for field, _ in getattr(parameters, name).ListFields()
            if field.name not in message.reads and f"{name}.{field.name}" not in self.ignored
        ]

    def _parse(self, param_str, layer_param):
        if self._message_class is None:
            self._message_class = self._make_message_class()
        parsed = self._message_class()
        if param_str.lstrip().startswith("{"):
            self._fill(parsed, self._read_dict(param_str.strip()), "")
        else:
            self._read_text(parsed, param_str)
        in_layer = self._add_layer_param(parsed, layer_param.message) if layer_param.message is not None else ()
        self._check(parsed, in_layer)
        self._check_complete(parsed, param_str, layer_param)
        return parsed

    def _add_layer_param(self, parsed, message):
        """Add the messages of a LayerParameter to `parsed`. Returns their names."""
        found = [field.name for field, _ in message.ListFields() if field.name.endswith("_param")]
        found.remove("python_param")
        for name in found:
            if name not in self.messages:
                hint = did_you_mean(name, self.messages) or f"It reads {', '.join(self.messages)}."
                raise _Wrong(name, f"this layer does not read {name}, and would ignore it. {hint}", _LAYER)
            if parsed.HasField(name):
                what = f"{name} is both in the layer parameter and in param_str. Leave one of them out."
                raise _Wrong("", what, _BOTH)
            getattr(parsed, name).CopyFrom(getattr(message, name))
        return found

    def _make_message_class(self):
        caffe_file = caffe_pb2.DESCRIPTOR
        # One file per layer: adding the same file again does nothing; adding a different file of that name fails.
        file = FileDescriptorProto(
            name=f"fastbatch/caffe/{self.layer}.proto", package="fastbatch.caffe", dependency=[caffe_file.name]
        )
        message = file.message_type.add(name=self.layer)
        for number, name in enumerate([*self.messages, *self.options], start=1):
            field = message.field.add(name=name, number=number, label=Proto.LABEL_OPTIONAL)
            if name in self.messages:
                field.type = Proto.TYPE_MESSAGE
                field.type_name = f".{caffe_file.package}.{self.messages[name].type}"
                continue
            option = self.options[name]
            field.type = Proto.Type.Value(f"TYPE_{option.kind.upper()}")
            if option.default is not None:
                field.default_value = str(option.default).lower() if option.kind == "bool" else str(option.default)
        caffe_file.pool.AddSerializedFile(file.SerializeToString())
        descriptor = caffe_file.pool.FindMessageTypeByName(f"fastbatch.caffe.{self.layer}")
        if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
            return message_factory.GetMessageClass(descriptor)
        from google.protobuf import reflection  # older versions; newer ones do not have it

        return reflection.MakeClass(descriptor)

    # Protobuf text

    def _read_text(self, parsed, text):
        try:
            text_format.Parse(text, parsed)
        except text_format.ParseError as error:
            line, column = error.GetLine(), error.GetColumn()
            where = "" if line is None else f"line {line}, column {column}"
            raise _Wrong(where, self._explain(str(error), text, line, column)) from None

    def _explain(self, complaint, text, line, column):
        """Reword an error of text_format: "LINE:COLUMN : 'THE LINE ITSELF': WHAT", of which the middle is optional."""
        field = "it"
        if line is not None:
            text_line = text.split("\n")[line - 1]
            complaint = complaint.split(" : ", 1)[-1]
            if complaint.startswith(f"'{text_line}': "):
                complaint = complaint[len(text_line) + 4 :]
            fields_before = re.findall(r"(\w+)\s*:", text_line[: column - 1])
            if fields_before:
                field = fields_before[-1]
        pool = self._message_class.DESCRIPTOR.file.pool
        unknown = re.match(r'Message type "(.+)" has no field named "(.+)"', complaint)
        if unknown:
            return self._unknown(unknown[2], pool.FindMessageTypeByName(unknown[1]))
        twice = re.match(r'Message type ".+" should not have multiple "(.+)" fields', complaint)
        if twice:
            return f"{twice[1]} is given twice."
        enum = re.match(r'Enum type "(.+)" has no value (?:named|with number) (.+)\.$', complaint)
        if enum:
            return _not_one_of(field, enum[2], pool.FindEnumTypeByName(enum[1]))
        value = re.match(r"(Couldn't parse \w+|Value out of range): (.+)", complaint, re.DOTALL)
        if value:
            return f"{field} cannot be {quoted(value[2])[1:-1]} ({value[1]})."
        if complaint.startswith(("Expected string", 'Expected "true"')):
            return f"{field}: {complaint}"
        return complaint

    # JSON and Python dict literals

    def _read_dict(self, text):
        try:
            return json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            not_json = str(error)  # the exception itself would hold this frame, its callers', and the layer in a cycle
        try:
            return self._evaluate(ast.parse(text, mode="eval").body)
        except SyntaxError as error:
            not_python = f"{error.msg}: line {error.lineno} column {error.offset}"
        except ValueError as error:  # zero bytes, before Python 3.12
            not_python = str(error)
        except (RecursionError, MemoryError) as error:
            not_python = f"nested too deeply: {type(error).__name__}"
        what = f"it begins with a brace, but is neither JSON ({not_json}) nor a Python dict literal ({not_python})."
        raise _Wrong("", what)

    def _evaluate(self, node):
        if isinstance(node, ast.Dict):
            return _Pairs((self._evaluate(key), self._evaluate(value)) for key, value in zip(node.keys, node.values))
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            where = f"line {node.lineno}, column {node.col_offset + 1}" if node else ""
            what = "only names, strings, numbers, True, False, lists and dicts are allowed."
            raise _Wrong(where, what) from None

    def _fill(self, message, pairs, path):
        """Set the fields of `message` from a dict. protobuf rejects values that a field can't hold."""
        if not isinstance(pairs, _Pairs):
            raise _Wrong(path, f"it takes a dict, not {quoted(pairs)}.")
        done = set()
        for name, value in pairs:
            where = f"{path}.{name}" if path else f"{name}"
            field = message.DESCRIPTOR.fields_by_name.get(name) if isinstance(name, str) else None
            if field is None or field.name != name:  # protobuf in C++ reads a name up to a zero byte
                raise _Wrong(path, self._unknown(str(name), message.DESCRIPTOR))
            if name in done:
                raise _Wrong(path, f"{name} is given twice.")
            done.add(name)
            slot = getattr(message, name)
            if field.type == Proto.TYPE_MESSAGE:
                slot.SetInParent()
                self._fill(slot, value, where)
            elif hasattr(slot, "append"):  # a repeated field
                for item in value if isinstance(value, (list, tuple)) else [value]:
                    self._set(where, field, item, slot.append)
            else:
                self._set(where, field, value, functools.partial(setattr, message, name))

    def _set(self, where, field, value, setter):
        kind, accepted = _ACCEPTED.get(field.type, ("an integer", int))
        if field.type == Proto.TYPE_ENUM:
            known = None
            if isinstance(value, str):
                known = field.enum_type.values_by_name.get(value)
            elif isinstance(value, int) and not isinstance(value, bool):
                # As caffe.params writes it: str(dict(backend=P.Data.LMDB))
                known = field.enum_type.values_by_number.get(value)
            if known is None or value not in (known.name, known.number):
                raise _Wrong(where, _not_one_of(field.name, quoted(value), field.enum_type))
            value = known.number
        elif not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
            raise _Wrong(where, f"it takes {kind}, not {quoted(value)}.")
        try:
            setter(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise _Wrong(where, f"it cannot be {quoted(value)} ({quoted(str(error))[1:-1]}).") from None

    # What is wrong

    def _check(self, parsed, in_layer):
        """Reject fields that must not be set, and values out of range."""

        def part_with(path):
            return _LAYER if path.split(".")[0] in in_layer else _PARAM_STR

        for path, why in self.refused.items():
            if _is_set(parsed, path):
                raise _Wrong(path, why, part_with(path))
        for path in self.ignored_in(parsed):
            if not _is_default(parsed, path):
                raise _Wrong(path, self.ignored[path], part_with(path))
        for path in self.unimplemented(parsed):
            what = (
                "this Caffe knows it, but fastbatch does not implement it, and would ignore it. "
                "Leave it out, or use Caffe's own layer."
            )
            field = path.partition(".")[2]
            if path == f"transform_param.{field}" and field in forks.REFUSED:
                what += f" {forks.REFUSED[field]}"
            raise _Wrong(path, what, part_with(path))
        for name in self.messages:
            for field, value in getattr(parsed, name).ListFields():
                numbers = value if hasattr(value, "append") else [value]
                if field.type == Proto.TYPE_FLOAT and not all(map(math.isfinite, numbers)):
                    what = "it is infinite, not a number, or too large for a float."
                    raise _Wrong(f"{name}.{field.name}", what, part_with(name))
        for option in self.options.values():
            value = getattr(parsed, option.name)
            if option.minimum is not None and parsed.HasField(option.name) and value < option.minimum:
                what = f"it cannot be {value}, the least is {option.minimum}. It is {option.help}."
                raise _Wrong(option.name, what)

    def _unknown(self, name, descriptor):
        """The error that the message has no such field, with the field that may be meant, here or elsewhere."""
        here = next((each for each in self.messages if self._message(each).full_name == descriptor.full_name), "")
        what = f'{here or "param_str"} has no field "{name}".'
        if name in forks.REFUSED:  # also where it is not in transform_param
            return f"{what} {forks.REFUSED[name]}"
        if not here and name in self.absent:
            return f"{what} {self.absent[name]}"
        others = [each for each in ["", *self.messages] if each != here]
        for outer in others:
            if name in self._names(outer):
                return f"{what} It belongs {_in(outer)}."
        for outer in [here, *others]:
            meant = did_you_mean(name, self._names(outer), "" if outer == here else f", {_in(outer)}")
            if meant:
                return f"{what} {meant}"
        return f"{what} It may hold {', '.join(self._names(here))}."

    def _message(self, name):
        return self._message_class.DESCRIPTOR.fields_by_name[name].message_type

    def _names(self, outer):
        """The names allowed in `outer`: one of Caffe's messages, or "" for the top level."""
        if not outer:
            return [*self.messages, *self.options]
        return [field.name for field in self._message(outer).fields if field.name in self.messages[outer].reads]

    def _check_complete(self, parsed, param_str, layer_param):
        """Reject missing parameters. If the layer parameter cannot be read, the error says so."""
        missing = next((path for path in self.required if not _is_set(parsed, path)), None)
        if layer_param.message is None and not param_str.strip():
            what = "it is empty, and says neither what to read nor how."
        elif missing:
            what = f"{missing} is missing."
        else:
            return
        if layer_param.message is None and layer_param.reason:
            what += (
                " What is beside python_param { } in the layer can't be read here, because "
                f"{layer_param.reason}: write it into param_str."
            )
        raise _Wrong("", what, _PARAM_STR if layer_param.message is None else _BOTH)

    def _describe(self, wrong, layer_param):
        """The whole message: the layer, the part of it, what is wrong, and a correct example."""
        name = f"{layer_param} ({self.layer})" if layer_param.message is not None else f"layer {self.layer}"
        where = f", {wrong.where}" if wrong.where else ""
        what = f"{wrong.part.format(name)}{where}: {wrong.what}{EXAMPLE}\n  "
        return what + (self.example if wrong.part == _PARAM_STR else self._example_in_layer())

    def _example_in_layer(self):
        """The example as written in a layer: fastbatch's options in param_str, Caffe's messages beside python_param."""
        example = self._parse(self.example, LayerParam())
        options = self._message_class()
        for name in self.options:
            if example.HasField(name):
                setattr(options, name, getattr(example, name))
                example.ClearField(name)
        options, messages = (text_format.MessageToString(each, as_one_line=True) for each in (options, example))
        param_str = f" param_str: '{options}'" if options else ""
        return f'python_param {{ module: "fastbatch.caffe" layer: "{self.layer}"{param_str} }} {messages}'


EXAMPLE = " A right one is, for example:"  # ends every message of Schema.parse, before an example

# The parts of a layer in which something can be wrong.
_PARAM_STR, _LAYER, _BOTH = "param_str of {}", "{}, in its layer parameter", "{}"


class _Wrong(Exception):
    """An error: where in the part (a field, a line), what is wrong, and in which part."""

    def __init__(self, where, what, part=_PARAM_STR):
        super().__init__(where, what, part)
        self.where, self.what, self.part = where, what, part


class ParameterError(ValueError):
    """A ValueError of `Schema.parse`. reason: what is wrong, as a sentence, without the layer and the example."""

    def __init__(self, text, wrong):
        super().__init__(text)
        self.reason = f"{wrong.where}: {wrong.what}" if wrong.where else wrong.what


class _Pairs(list):
    """The pairs of a dict, in which a name may occur twice."""

    def __repr__(self):
        return repr(dict(self))


def _in(outer):
    return f"in {outer} {{ }}" if outer else "at the top level, beside Caffe's messages"


def did_you_mean(name, names, where=""):
    """The question whether one of these names was meant; "" if none is like it."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    return f"Did you mean {close[0]}{where}?" if close else ""


def _is_set(message, path):
    *outer, name = path.split(".")
    for part in outer:
        message = getattr(message, part)
    return name in message.DESCRIPTOR.fields_by_name and message.HasField(name)  # older Caffes lack some fields


def _is_default(message, path):
    """Whether a field has its default value."""
    *outer, name = path.split(".")
    for part in outer:
        message = getattr(message, part)
    return getattr(message, name) == message.DESCRIPTOR.fields_by_name[name].default_value


def _not_one_of(field, value, enum):
    names = [known.name for known in enum.values]
    close = difflib.get_close_matches(value.strip("'\"").upper(), names, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"It is one of {', '.join(names)}."
    return f"{field} cannot be {value}. {hint}"


# The Python types that a value in a dict may have, for each protobuf type. All other types take an integer.
_ACCEPTED = {
    Proto.TYPE_STRING: ("a string", str),
    Proto.TYPE_BOOL: ("true or false", bool),
    Proto.TYPE_FLOAT: ("a number", (int, float)),
    Proto.TYPE_DOUBLE: ("a number", (int, float)),
}
