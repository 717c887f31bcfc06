"""transform_param: how Caffe's DataTransformer interprets it, and when it is rejected."""

from fastbatch._transform import NativeTransform
from fastbatch.caffe.layers.params import path_of
from fastbatch.transforms import Transform


def check_transform(param):
    """Raises ValueError for a transform_param that Caffe refuses."""
    if color_of(param) is None:
        raise ValueError("cannot set both force_color and force_gray")
    if param.HasField("mean_file") and param.mean_value:
        raise ValueError("Cannot specify mean_file and mean_value at the same time: choose one of them")


def transform_of(param, phase):
    """The Transform that a transform_param describes."""
    return Transform(
        crop_size=param.crop_size,
        mirror=param.mirror,
        scale=param.scale,
        mean_value=tuple(param.mean_value),
        mean_file=path_of(param.mean_file) if param.HasField("mean_file") else None,
        phase=phase,
    )


def check_image(path, shape, transform):
    """Raise ValueError if the transform does not fit a source's first image, of this shape.

    For any later image, the same problem is an error of its batch.
    """
    try:
        NativeTransform(transform).check(shape)
    except ValueError as problem:
        raise ValueError(f"{path}: of its first image: {problem}") from None


def color_of(param):
    """How a transform_param decodes encoded images: "color", "gray" or "unchanged"; None if it sets both flags.

    Older versions of Caffe only have "unchanged".
    """
    color, gray = getattr(param, "force_color", False), getattr(param, "force_gray", False)
    return None if color and gray else "color" if color else "gray" if gray else "unchanged"
