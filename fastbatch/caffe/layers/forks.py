"""The names that SSD's and NVIDIA's Caffe have for steps of a transform: what each becomes, or why it is refused."""


def _in_a_layer_of_your_own(fork, parameters):
    return f"It is a field of {fork} Caffe: define a fastbatch.caffe.Layer, and give it 'transform': {parameters}."


def _nowhere(fork):
    return f"It is a field of {fork} Caffe, and fastbatch does not do it."


REFUSED = {  # in a transform_param, which is that of BVLC's Caffe
    "crop_h": _in_a_layer_of_your_own("SSD's", "{'crop_size': [height, width]}"),
    "crop_w": _in_a_layer_of_your_own("SSD's", "{'crop_size': [height, width]}"),
    "resize_param": _in_a_layer_of_your_own("SSD's", "{'resize': [height, width]}"),
    "distort_param": _in_a_layer_of_your_own("SSD's", "{'brightness': 0.3, 'contrast': 0.3, 'saturation': 0.3}"),
    "expand_param": _nowhere("SSD's"),
    "noise_param": _nowhere("SSD's"),
    "emit_constraint": _in_a_layer_of_your_own("SSD's", "{'boxes': ['box'], 'least_visible': 0.3}"),
    "short_side": _in_a_layer_of_your_own("NVIDIA's", "{'resize': pixels}"),
    "img_rand_resize_lower": _nowhere("NVIDIA's"),
    "img_rand_resize_upper": _nowhere("NVIDIA's"),
}

_USUAL = {"prob": (1,), "resize_mode": ("WARP", 1), "interp_mode": ("LINEAR", ["LINEAR"], 1, [1])}  # of a resize_param


def translated(transform):
    """The parameters of a `Transform`, where some may have the names of these Caffes for the same steps.

    "crop_h" and "crop_w" become "crop_size"; "short_side", and a "resize_param" that warps every image to "height" and
    "width" bilinearly, become "resize". Other names stay as they are: Transform says what to write for them.

    transform: a dict. Raises ValueError if two parameters say the same, or one of a pair is missing.
    """
    found = dict(transform)
    if "crop_h" in found or "crop_w" in found:
        crop = {name: found.pop(name) for name in ("crop_h", "crop_w") if name in found}
        _put(found, "crop_size", _pair(crop, "crop_h", "crop_w", "transform"), "crop_h and crop_w")
    if "resize_param" in found:
        param = found.pop("resize_param")
        if not isinstance(param, dict):
            raise ValueError(f"resize_param must be a dict, such as {{'height': 300, 'width': 300}}, not {param!r}")
        size = {name: value for name, value in param.items() if value not in _USUAL.get(name, ())}
        _put(found, "resize", _pair(size, "height", "width", "resize_param"), "resize_param")
    if "short_side" in found:
        _put(found, "resize", found.pop("short_side"), "short_side")
    return found


def _pair(values, first, second, where):
    """The two values, which are all that may be there."""
    others = [name for name in values if name not in (first, second)]
    if others:
        raise ValueError(
            f"{where} has {others[0]}: {values[others[0]]!r}, which fastbatch does not do: every image is resized to "
            f"{first} and {second}, bilinearly"
        )
    for name in (first, second):
        if name not in values:
            raise ValueError(f"{where} has no {name}: {first} and {second} belong together")
    return values[first], values[second]


def _put(found, name, value, given_as):
    if name in found:
        raise ValueError(f"transform has {name} and {given_as}, which say the same: leave one of them out")
    found[name] = value
