"""Edits that turn the text of one of Caffe's data layers into that of fastbatch's layer.

A block is the text of a `layer { ... }`, as a prototxt.Field.
"""

from fastbatch.caffe.convert import text as prototxt


def in_place(text, block, kind, ignored):
    """Return the edits that make a block fastbatch's layer `kind`, with the parameters left in place.

    Parameters
    ----------
    text : str
        The whole net.
    block : prototxt.Field
    kind : str
        The name of fastbatch's class.
    ignored : sequence of (str, str)
        The fields to remove, each as the names of a message in the block and of a field in it.
    """
    python_param = f'python_param {{ module: "fastbatch.caffe" layer: "{kind}" }}'
    edits = _types(block)
    end = block.named("type")[-1].end
    line_end = text.find("\n", end)
    if end <= line_end < block.value_end and not any(field.start < line_end < field.end for field in block.fields):
        line_end -= text[line_end - 1] == "\r"
        edits.append((line_end, line_end, prototxt.newline(text) + _indent_inside(text, block) + python_param))
    else:
        edits.append((end, end, " " + python_param))
    for message in block.fields:
        edits += prototxt.replacing(text, message.named(*_of(ignored, message)))
    return edits


def parameters(text, block, messages, ignored):
    """Return the lines of messages in a block as (code, comment), in order and without their indentation."""
    lines = []
    for message in block.named(*messages):
        lines += _lines(text, message, _of(ignored, message))
    return lines


def in_param_str(text, block, kind, messages, lines):
    """Return the edits that make a block fastbatch's layer `kind`, with `lines` in param_str instead of `messages`."""
    found = block.named(*messages)
    before = prototxt.indent(text, found[0].start)
    multiline = "\n" in text[block.value_start : block.value_end]
    if not multiline:
        lines = [(" ".join(code for code, _ in lines), "")]
    items = ['module: "fastbatch.caffe"', f'layer: "{kind}"', *_param_str(lines)]
    new = prototxt.message("python_param", items, before, multiline, prototxt.newline(text))
    return _types(block) + prototxt.replacing(text, found, new)


def _of(ignored, message):
    return [name for outer, name in ignored if outer == message.name]


def _types(block):
    return [(field.value_start, field.value_end, '"Python"') for field in block.named("type")]


def _indent_inside(text, block):
    """The spaces before a field of this block that begins its line."""
    for field in block.fields:
        before = prototxt.indent(text, field.start)
        if text[: field.start].endswith("\n" + before):
            return before
    return prototxt.indent(text, block.start) + "  "


def _lines(text, message, ignored):
    """The lines of a message without the `ignored` fields, as (code, comment), dedented by the first line's indent."""
    start, end = message.start, message.value_end
    cuts = [
        (left - start, right - start, new) for left, right, new in prototxt.replacing(text, message.named(*ignored))
    ]
    before = prototxt.indent(text, start)
    lines = prototxt.replaced(text[start:end], cuts).split("\n")
    return [
        prototxt.code_and_comment(line[len(before) :] if line.startswith(before) else line.lstrip(prototxt.SPACE))
        for line in lines
    ]


def _param_str(lines):
    """The field param_str, with one string per line: a string can hold neither a line break nor a comment."""
    code = "".join(code for code, _ in lines)
    quote = '"' if "'" in code and '"' not in code else "'"
    items, key = [], "param_str: "
    last = max(number for number, (code, _) in enumerate(lines) if code)
    for number, (code, comment) in enumerate(lines):
        string = ""
        if code:
            escaped = code.replace("\\", "\\\\").replace(quote, "\\" + quote)
            string = quote + escaped + (" " if number < last else "") + quote
        items.append((key + string + ("  " if string and comment else "") + comment).rstrip(prototxt.SPACE))
        key = " " * len(key)
    return items
