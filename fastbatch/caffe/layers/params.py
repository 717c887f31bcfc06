"""The parameters that several layers share: messages, options, and functions that read their values."""

import os

from fastbatch.caffe.layers.schema import Message, Option
from fastbatch.loader import check_cache_folder, check_error_budget

MOVED = ("scale", "mean_file", "crop_size", "mirror")
"""The fields that data_param, image_data_param and window_data_param had before there was a transform_param."""

TRANSFORM = Message(
    "TransformationParameter", ("scale", "mirror", "crop_size", "mean_file", "mean_value", "force_color", "force_gray")
)
PREFETCH = Message("DataParameter", ("prefetch",))

THREADS = Option("threads", "uint32", "the number of worker threads, by default that of the usable cores", minimum=1)
SEED = Option("seed", "uint32", "the number that replaces the layer's draws from Caffe's own stream of random numbers")
ON_ERROR = Option(
    "on_error", "string", 'what becomes of a sample that cannot be loaded: "raise" or "replace"', default="raise"
)
ERROR_BUDGET = Option(
    "error_budget", "double", "the number of samples that may be replaced or, below 1, their share", minimum=0
)
CACHE_BYTES = Option(
    "cache_bytes", "uint64", "the memory for decoded images, which then need not be decoded again", minimum=1
)
CACHE_FOLDER = Option("cache_folder", "string", "the folder of a file that holds these images instead of memory")
INDEX_BYTES = Option(
    "index_bytes", "uint64", "the most memory that the index of JPEG files may take, 0 for none (see docs/jpeg.md)"
)
INDEX_FILE = Option("index_file", "string", "the file that keeps the index of JPEG files (see docs/jpeg.md)")
RESUME = Option("resume", "bool", "whether `caffe train --snapshot` goes on at the batch where the snapshot was made")
ZERO_COPY = Option("zero_copy", "bool", "whether Caffe uses the memory of a batch itself, not a copy", default=True)


def moved(message, *fields):
    """The ignored fields of a message that Caffe reads in transform_param only: `fields`, by default all of MOVED."""
    why = "Caffe ignores it there. Write it in transform_param { }, where it works."
    return {f"{message}.{name}": why for name in fields or MOVED}


def prefetch_alone(message):
    """The ignored fields of data_param, for a layer that reads only its prefetch."""
    return {
        f"data_param.{name}": f"This layer reads nothing of data_param but prefetch. Write it in {message} {{ }}."
        for name in ("source", "batch_size", "rand_skip", "backend", *MOVED, "force_encoded_color")
    }


def error_policy(on_error, error_budget):
    """The parameters on_error and error_budget of a BatchRing. Raise ValueError for what a layer cannot do."""
    if on_error == "skip":
        raise ValueError(
            'on_error cannot be "skip" in a layer, because the batches of a net have a fixed size: use "replace", with '
            "which another sample takes the place"
        )
    if on_error not in ("raise", "replace"):
        raise ValueError(f'on_error must be "raise" or "replace", not {on_error!r}')
    if isinstance(error_budget, float) and error_budget.is_integer():
        error_budget = int(error_budget)  # protobuf's numbers are doubles
    return {"on_error": on_error, "error_budget": check_error_budget(error_budget, on_error)}


def parsed_error_policy(parsed):
    """The same for the options of a schema."""
    return error_policy(parsed.on_error, parsed.error_budget if parsed.HasField("error_budget") else None)


def no_cache(why):
    """`absent` of a schema: why the layer has no cache of decoded images."""
    return dict.fromkeys(("cache_bytes", "cache_folder"), f"{why}. Leave it out.")


def cache_options(parsed):
    """The options of the cache of decoded images, as parameters of a BatchRing."""
    size = parsed.cache_bytes if parsed.HasField("cache_bytes") else None
    folder = path_of(parsed.cache_folder) if parsed.HasField("cache_folder") else None
    return {"cache_bytes": size, "cache_folder": check_cache_folder(folder, size)}


def index_options(parsed):
    """The options of the index of JPEG files, as parameters of a source."""
    found = {}
    if parsed.HasField("index_bytes"):
        found["index_bytes"] = parsed.index_bytes
    if parsed.HasField("index_file"):
        found["index_file"] = path_of(parsed.index_file)
    return found


def path_of(value):
    """A path from a prototxt as a str. Its bytes are the file's name in any locale."""
    return os.fsdecode(value if isinstance(value, bytes) else value.encode())


def text_of(value):
    """A string from a prototxt as a str, for messages. protobuf returns what is not UTF-8 as bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def prefetch_of(data_param):
    """The number of batches to prefetch: Caffe's default, 4, if the field is missing or is 0 by default."""
    field = data_param.DESCRIPTOR.fields_by_name.get("prefetch")
    if field is None or (field.default_value == 0 and data_param.prefetch == 0):
        return 4
    return data_param.prefetch
