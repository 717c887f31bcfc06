"""`Transform`: Caffe's transform_param, applied to an image between source and batch.

This module checks the parameters; native code does the work.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Optional, Union

import numpy as np

from fastbatch._keywords import unknown_keyword
from fastbatch.formats.binaryproto import read_mean_file

# The names and values of Phase in caffe.proto.
_PHASES: dict[Union[str, int], Literal["TRAIN", "TEST"]] = {"TRAIN": "TRAIN", "TEST": "TEST", 0: "TRAIN", 1: "TEST"}
_RESIZE = "images are resized where they are decoded: fastbatch.ImageListSource(images, size=(height, width))"
_COLOR = 'it is a parameter of the source: color="color" or color="gray"'
# What users may look for here, by its names in Caffe, its forks and torchvision.
_ELSEWHERE = {
    "color": _COLOR,
    "crop": "the side of the square that is cut out is crop_size",
    "flip": "images are flipped with mirror=True",
    "force_color": _COLOR,
    "force_gray": _COLOR,
    "horizontal_flip": "images are flipped with mirror=True",
    "mean": "what is subtracted is mean_value, or the image in mean_file",
    "new_height": _RESIZE,
    "new_width": _RESIZE,
    "resize": _RESIZE,
    "size": _RESIZE,
    "std": "values are multiplied by scale, one factor for all channels",
}
_INT_MAX = 2**31 - 1
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, init=False)
class Transform:
    """Crop, subtract the mean, scale and mirror, bit for bit as Caffe's DataTransformer does.

    All parameters are keyword-only, and are attributes too. They have the names and the meaning of those in Caffe's
    ``TransformationParameter``:

    crop_size : int
        Side of the square crop in pixels. The crop's position is random in TRAIN, and the center in TEST. 0: the whole
        image.
    mirror : bool
        Whether to flip images left to right at random, one in two. Also in TEST, as in Caffe.
    scale : float
        Factor for every value, applied after the mean was subtracted.
    mean_value : float or sequence of float
        One value for all channels, or one for each; the attribute is a tuple. Not together with ``mean_file``.
    mean_file : path, optional
        Mean image, as written by ``compute_image_mean`` (``.binaryproto``), with the size of the *uncropped* image. It
        is read once, here.
    phase : "TRAIN" or "TEST"
        In upper or lower case, or as Caffe's numbers, 0 and 1.

    The input image is uint8 or float32 of shape (channels, height, width). The output is float32,
    ``(value - mean) * scale``, with each operation rounded once. Channels keep their order, which is BGR in the output
    of Caffe's tools.

    Raises ValueError for an invalid value or an invalid mean file, and FileNotFoundError if the mean file is missing. A
    Transform is immutable, so any number of loaders and threads may share one. Two are equal if their parameters are.
    """

    crop_size: int
    mirror: bool
    scale: float
    mean_value: tuple[float, ...]
    mean_file: Optional[str]
    phase: Literal["TRAIN", "TEST"]
    _mean_image: Optional[np.ndarray[Any, np.dtype[np.float32]]] = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        *,
        crop_size: int = 0,
        mirror: bool = False,
        scale: float = 1.0,
        mean_value: Union[float, Iterable[float]] = (),
        mean_file: Optional[Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]] = None,
        phase: Literal["TRAIN", "TEST", "train", "test", 0, 1] = "TRAIN",
        **others: NoReturn,
    ) -> None:
        if others:
            raise unknown_keyword("Transform", next(iter(others)), type(self), _ELSEWHERE)
        mean_value = _numbers("mean_value", mean_value)
        if mean_value and mean_file is not None:
            raise ValueError("Cannot specify mean_file and mean_value at the same time: choose one of them")
        mean_file = None if mean_file is None else os.fsdecode(mean_file)
        checked: dict[str, object] = {
            "crop_size": _pixels("crop_size", crop_size),
            "mirror": _flag("mirror", mirror),
            "scale": _number("scale", scale),
            "mean_value": mean_value,
            "mean_file": mean_file,
            "phase": _phase(phase),
            "_mean_image": _mean_image(mean_file),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # a frozen dataclass has no other way

    def mean_image(self) -> Optional[np.ndarray[Any, np.dtype[np.float32]]]:
        """The mean image, read-only C-contiguous float32 (channels, height, width), or None without a mean file."""
        return self._mean_image


def _pixels(name: str, value: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, in pixels, not {value!r}")
    if not 0 <= value <= _INT_MAX:
        raise ValueError(f"{name} must lie between 0 (no crop) and {_INT_MAX}, it is {value}")
    return int(value)


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, (numbers.Integral, np.bool_)) or value not in (0, 1):
        raise ValueError(f"{name} is True or False, not {value!r}")
    return bool(value)


def _number(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} takes numbers, not {value!r}")
    if not abs(value) <= _FLOAT_MAX:  # NaN fails too
        raise ValueError(f"{name} takes finite numbers that fit into a float32, not {value!r}")
    return float(value)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, numbers.Real):
        values = (values,)
    try:
        if isinstance(values, (str, bytes)):  # whose characters are not numbers
            raise TypeError
        values = tuple(values)
    except TypeError:
        raise ValueError(f"{name} is a number, or one number for each channel, not {values!r}") from None
    return tuple(_number(name, value) for value in values)


def _phase(value: Union[str, int]) -> Literal["TRAIN", "TEST"]:
    try:
        return _PHASES[value.upper() if isinstance(value, str) else value]
    except (KeyError, TypeError):
        raise ValueError(f'phase is "TRAIN" or "TEST", not {value!r}') from None


def _mean_image(mean_file: Optional[str]) -> Optional[np.ndarray[Any, np.dtype[np.float32]]]:
    if mean_file is None:
        return None
    mean = read_mean_file(mean_file)
    mean.flags.writeable = False  # loaders read it where it lies
    return mean
