"""`Transform`: what happens to an image between source and batch: Caffe's transform_param, and more.

This module checks the parameters; native code does the work.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, Optional, Union

import numpy as np

from fastbatch._keywords import unknown_keyword
from fastbatch.formats.binaryproto import read_mean_file

# The names and values of Phase in caffe.proto.
_PHASES: dict[Union[str, int], Literal["TRAIN", "TEST"]] = {"TRAIN": "TRAIN", "TEST": "TEST", 0: "TRAIN", 1: "TEST"}
_RESIZE = "images are resized with resize=(height, width), or resize= for the shorter side"
_SIZE = "the size of the output is crop_size=, or random_resized_crop=; resize= resizes the whole image"
_COLOR = (
    'the source decodes in color or gray, by its color="color" or color="gray"; the transform has color="rgb", "bgr" '
    'or "gray"'
)
_SSDS = "SSD's Caffe has it, and fastbatch does not do it"
_NVIDIAS = "NVIDIA's Caffe has it, and fastbatch does not do it; random_resized_crop resizes at random"
# What users may look for here, by its names in Caffe, its forks and torchvision.
_ELSEWHERE = {
    "center_crop": 'crop_size= with phase="TEST" cuts out the center',
    "channels": _COLOR,
    "crop": "the side of the square that is cut out is crop_size",
    "crop_h": "the height of the crop is the first number of crop_size=(height, width)",
    "crop_w": "the width of the crop is the second number of crop_size=(height, width)",
    "distort_param": "the steps of SSD's distort_param are brightness, contrast and saturation",
    "emit_constraint": "boxes of which the crop shows too little are dropped by least_visible, with boxes=",
    "expand_param": _SSDS,
    "flip": "images are flipped with mirror=True",
    "force_color": _COLOR,
    "force_gray": _COLOR,
    "horizontal_flip": "images are flipped with mirror=True",
    "hue": "brightness, contrast and saturation change colors, and nothing changes the hue",
    "img_rand_resize_lower": _NVIDIAS,
    "interpolation": "images are resized bilinearly, with the bits of OpenCV's INTER_LINEAR",
    "img_rand_resize_upper": _NVIDIAS,
    "new_height": _RESIZE,
    "new_width": _RESIZE,
    "noise_param": _SSDS,
    "normalize": "the mean and the standard deviation of the channels are mean= and std=, for values from 0 to 1",
    "pad": "the number of pixels around the image is padding",
    "random_crop": "crop_size= cuts out a square at random, in the phase TRAIN, which is the default",
    "ratio": "the ratios of random_resized_crop are crop_ratio",
    "resize_param": _RESIZE,
    "short_side": _RESIZE,
    "size": _SIZE,
}
_COLORS = ("rgb", "bgr", "gray")
_DTYPES = ("float32", "float16", "uint8")
_LAYOUTS = ("NCHW", "NHWC")
_INT_MAX = 2**31 - 1
_PADDING_MAX = 2**20
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's defaults, as is the area
_MOST_FACTOR = 1e6  # so that no product of values and factors is infinite
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Transform:
    """What happens to an image between source and batch.

    All parameters are keyword-only, and are attributes too. The first six have the names and the meaning of those in
    Caffe's ``TransformationParameter``, and the bits of its DataTransformer:

    crop_size : int or (int, int)
        Side of the square crop in pixels; or its height and width, which Caffe does not have. The crop's position is
        random in TRAIN, and the center in TEST. 0: the whole image.
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

    The others are:

    mean, std : float or sequence of float
        ``(value - mean) / std``, with one value for all channels of the output, or one for each, in their order. They
        are those of values from 0 to 1, as in torchvision's ``Normalize``. For uint8 images, which have values from 0
        to 255, both are multiplied by 255; a mean or std above 1 is an error. Values of float32 images are taken as
        they are. Given one of the two, the other is 0 or 1. Not together with ``mean_value``, ``mean_file`` and
        ``scale``. The attributes are tuples.
    color : "rgb", "bgr" or "gray", optional
        The channels of the output. An image of 3 channels has blue first, as fastbatch decodes it; an image of 1
        channel is gray. None: the channels of the image.
    dtype : "float32", "float16" or "uint8"
        The type of the output; uint8 for images of uint8 and a transform without arithmetic.
    layout : "NCHW" or "NHWC"
        Whether channels come before height and width, or after them.
    fields : sequence of str
        The arrays that the transform is applied to. The first is the image. The others, such as masks, get the same
        resize, padding, crop and mirror, and keep their type. They have the height and width of the image.
    boxes, points : sequence of str
        The arrays that hold boxes, or points, of the image, which move with it. Rows of boxes begin with x1, y1, x2,
        y2, and rows of points with x, y, in pixels of the image as the source gives it, whose edges are 0 and its
        width. Further columns go with their row. Boxes are clipped to what the output shows. Rows that it does not show
        are removed if the source has a count, such as "box_count" for "box"; otherwise, boxes become zeros, and points
        stay outside.
    least_visible : float
        The share of a box's area that the output must show, from 0 to 1. By default, any part of it is enough.
    resize : int or (int, int)
        Resize the whole image, which must be uint8, before it is cropped: to this height and width, or so that the
        shorter side has this length. 0: its own size.
    padding : int or (int, int)
        Pixels to put around the image, before it is cropped: on all sides; or at the top and bottom, and on the left
        and right. Less than ``crop_size``.
    fill, mask_fill : float
        The values of these pixels in all channels: of the image, before the arithmetic; of the other ``fields``.
    random_resized_crop : int or (int, int)
        Cut out a random part of the image, which must be uint8, and resize it to this height and width, as torchvision
        does. In place of ``crop_size``, ``resize`` and ``padding``, in TRAIN only. 0: no such crop.
    crop_area, crop_ratio : (float, float)
        Its least and greatest share of the image's area, and ratio of width to height.
    brightness, contrast, saturation : float or (float, float)
        Change the colors of each image, which must be uint8, by a factor that is drawn from this range; a number x
        stands for the range from 1 - x to 1 + x. In TRAIN only. The attributes are ranges, (1, 1) by default.

    The input image is uint8 or float32 of shape (channels, height, width). The output is
    ``(value - mean) * scale``, computed in float32, with each operation rounded once; a factor ``1 / std`` is computed
    in double and rounded once. docs/transforms.md has the exact definitions.

    Raises ValueError for an invalid value or an invalid mean file, and FileNotFoundError if the mean file is missing. A
    Transform is immutable, so any number of loaders and threads may share one. Two are equal if their parameters are.
    """

    crop_size: Union[int, tuple[int, int]]
    mirror: bool
    scale: float
    mean_value: tuple[float, ...]
    mean_file: Optional[str]
    phase: Literal["TRAIN", "TEST"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: Optional[Literal["rgb", "bgr", "gray"]]
    dtype: Literal["float32", "float16", "uint8"]
    layout: Literal["NCHW", "NHWC"]
    fields: tuple[str, ...]
    resize: Union[int, tuple[int, int]]
    padding: Union[int, tuple[int, int]]
    fill: float
    mask_fill: float
    random_resized_crop: Union[int, tuple[int, int]]
    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    brightness: tuple[float, float]
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    boxes: tuple[str, ...]
    points: tuple[str, ...]
    least_visible: float
    _mean_image: Optional[np.ndarray[Any, np.dtype[np.float32]]] = dataclasses.field(
        init=False, repr=False, compare=False
    )

    def __init__(
        self,
        *,
        crop_size: Union[int, Iterable[int]] = 0,
        mirror: bool = False,
        scale: float = 1.0,
        mean_value: Union[float, Iterable[float]] = (),
        mean_file: Optional[Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]] = None,
        phase: Literal["TRAIN", "TEST", "train", "test", 0, 1] = "TRAIN",
        mean: Union[float, Iterable[float]] = (),
        std: Union[float, Iterable[float]] = (),
        color: Optional[Literal["rgb", "bgr", "gray"]] = None,
        dtype: Literal["float32", "float16", "uint8"] = "float32",
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        fields: Iterable[str] = ("data",),
        resize: Union[int, Iterable[int]] = 0,
        padding: Union[int, Iterable[int]] = 0,
        fill: float = 0.0,
        mask_fill: float = 0.0,
        random_resized_crop: Union[int, Iterable[int]] = 0,
        crop_area: Iterable[float] = _CROP_AREA,
        crop_ratio: Iterable[float] = _CROP_RATIO,
        brightness: Union[float, Iterable[float]] = 0.0,
        contrast: Union[float, Iterable[float]] = 0.0,
        saturation: Union[float, Iterable[float]] = 0.0,
        boxes: Iterable[str] = (),
        points: Iterable[str] = (),
        least_visible: float = 0.0,
        **others: NoReturn,
    ) -> None:
        if others:
            raise unknown_keyword("Transform", next(iter(others)), type(self), _ELSEWHERE)
        mean_value = _numbers("mean_value", mean_value)
        if mean_value and mean_file is not None:
            raise ValueError("Cannot specify mean_file and mean_value at the same time: choose one of them")
        mean_file = None if mean_file is None else os.fsdecode(mean_file)
        checked: dict[str, object] = {
            "crop_size": _pixels("crop_size", crop_size, "no crop"),
            "mirror": _flag("mirror", mirror),
            "scale": _scale(scale),
            "mean_value": mean_value,
            "mean_file": mean_file,
            "phase": _phase(phase),
            "mean": _numbers("mean", mean),
            "std": _divisors(std),
            "color": None if color is None else _choice("color", color, _COLORS),
            "dtype": _dtype(dtype),
            "layout": _choice("layout", layout, _LAYOUTS),
            "fields": _names("fields", fields, ', the image\'s first, such as ("data", "mask")', least=1),
            "resize": _pixels("resize", resize, "no resize"),
            "padding": _pixels("padding", padding, "none", most=_PADDING_MAX),
            "fill": _number("fill", fill),
            "mask_fill": _number("mask_fill", mask_fill),
            "random_resized_crop": _pixels("random_resized_crop", random_resized_crop, "no such crop"),
            "crop_area": _range("crop_area", crop_area),
            "crop_ratio": _range("crop_ratio", crop_ratio),
            "brightness": _factors("brightness", brightness),
            "contrast": _factors("contrast", contrast),
            "saturation": _factors("saturation", saturation),
            "boxes": _names("boxes", boxes, ' of arrays, such as ("boxes",)'),
            "points": _names("points", points, ' of arrays, such as ("points",)'),
            "least_visible": _number("least_visible", least_visible),
            "_mean_image": _mean_image(mean_file),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # a frozen dataclass has no other way
        self._check_arithmetic()
        self._check_channels()
        self._check_geometry()
        self._check_padding()
        self._check_coordinates()

    def _check_arithmetic(self) -> None:
        """Rejects combinations of which one part would have no effect."""
        caffes = "mean_value" if self.mean_value else "mean_file" if self.mean_file else "scale"
        has_caffes = self.mean_value or self.mean_file is not None or self.scale != 1
        if (self.mean or self.std) and has_caffes:
            raise ValueError(
                f"mean and std take the place of mean_value, mean_file and scale: leave out {caffes}, or write "
                "(value - mean_value) * scale without mean and std"
            )
        if self.dtype == "uint8" and (self.mean or self.std or has_caffes):
            raise ValueError(
                'dtype="uint8" gives the values of the image as they are: leave out '
                f'{"mean and std" if self.mean or self.std else caffes}, or ask for "float32" or "float16"'
            )

    def _check_channels(self) -> None:
        """Rejects values for other channels than the output's."""
        if self.mean_file is not None and self.color is not None:
            raise ValueError("a mean_file has the channels of the images as they are stored: leave color out")
        counts = {len(values): name for name, values in self._per_channel() if len(values) > 1}
        if len(counts) > 1:
            one, other = counts
            raise ValueError(
                f"{counts[one]} has {one} values and {counts[other]} has {other}: give one for each channel, or one "
                "for all"
            )
        channels = 1 if self.color == "gray" else 3
        for count, name in counts.items():
            if self.color is not None and count != channels:
                raise ValueError(
                    f'color="{self.color}" makes images with {channels} channel{"s"[: channels > 1]}, but {name} has '
                    f"{count} values"
                )

    def _check_geometry(self) -> None:
        """Rejects steps that do not go together."""
        if self.random_resized_crop:
            for name in "crop_size", "resize", "padding", "mean_file":
                if getattr(self, name):
                    raise ValueError(f"random_resized_crop does not go together with {name}: leave one of them out")
            if self.phase == "TEST":
                raise ValueError(
                    'random_resized_crop is for training: with phase="TEST", resize the shorter side and crop the '
                    "center, as in Transform(resize=256, crop_size=224)"
                )
        elif (self.crop_area, self.crop_ratio) != (_CROP_AREA, _CROP_RATIO):
            raise ValueError("crop_area and crop_ratio are those of random_resized_crop, which is not given")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area is a share of the image's area, at most 1, not {self.crop_area[1]!r}")
        if self.mean_file is not None and (self.resize or self.padding):
            step = "resize" if self.resize else "padding"
            raise ValueError(f"a mean_file has the size of the images as the source gives them: leave {step} out")

        for name in "brightness", "contrast", "saturation":
            if self.phase == "TEST" and getattr(self, name) != (1, 1):
                raise ValueError(f'{name} is for training: leave it out with phase="TEST"')

    def _check_padding(self) -> None:
        rows, columns = _both(self.padding)
        height, width = _both(self.crop_size)
        if self.crop_size and (rows >= height or columns >= width):
            raise ValueError(
                f"padding must be smaller than crop_size, or a crop might show nothing of the image: padding is "
                f"{self.padding}, crop_size {self.crop_size}"
            )
        for name, value, needs in (
            ("fill", self.fill, "padding"),
            ("mask_fill", self.mask_fill, "padding, and fields beside the image"),
        ):
            if value and not (self.padding and (name == "fill" or len(self.fields) > 1)):
                raise ValueError(f"{name} has no effect without {needs}")
        if self.dtype == "uint8" and (self.fill % 1 or not 0 <= self.fill <= 255):
            raise ValueError(f'with dtype="uint8", fill is an integer from 0 to 255, not {self.fill!r}')
        if self.padding and self.dtype != "uint8":
            with np.errstate(over="ignore"):
                filled = np.abs(self._filled()).astype(self.dtype)
            if not np.isfinite(filled).all():
                raise ValueError(
                    f"fill={self.fill!r} is beyond what {self.dtype} can hold after the arithmetic, which applies to "
                    "the padding too: fill has the unit of the image's pixels, such as 0 to 255"
                )

    def _check_coordinates(self) -> None:
        names = self.fields + self.boxes + self.points
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} can be only one of these: of fields, of boxes, or of points")
        moves = self.crop_size or self.mirror or self.resize or self.padding or self.random_resized_crop
        if len(names) > len(self.fields) and not moves:
            raise ValueError(
                f"{'boxes' if self.boxes else 'points'} has no effect without a step that moves pixels: resize, "
                "padding, crop_size, mirror or random_resized_crop"
            )
        if not 0 <= self.least_visible <= 1:
            raise ValueError(f"least_visible is a share of a box's area, from 0 to 1, not {self.least_visible!r}")
        if self.least_visible and not self.boxes:
            raise ValueError("least_visible has no effect without boxes")

    def _filled(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What becomes of `fill` in each channel, around an image of uint8."""
        if self.mean or self.std:
            return (self.fill - 255 * np.array(self.mean or (0.0,))) / (255 * np.array(self.std or (1.0,)))
        return (self.fill - np.array(self.mean_value or (0.0,))) * self.scale

    @classmethod
    def imagenet(cls, train: bool, **changes: Any) -> Transform:
        """The usual transform of networks trained on ImageNet.

        In training, a random resized crop of 224 pixels, mirrored one time in two; otherwise the shorter side resized
        to 256, and the center of 224 pixels. In both, red first, normalized with ImageNet's mean and std.

        train : bool
            Whether it is for training.
        changes
            Parameters of Transform that are to be different.
        """
        steps: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "color": "rgb"}
        if _flag("train", train):
            steps.update(random_resized_crop=224, mirror=True)
        else:
            steps.update(resize=256, crop_size=224, phase="TEST")
        return cls(**{**steps, **changes})

    def _per_channel(self) -> list[tuple[str, tuple[float, ...]]]:
        return [("mean_value", self.mean_value), ("mean", self.mean), ("std", self.std)]

    def __repr__(self) -> str:
        defaults = Transform()
        named = [(each.name, getattr(self, each.name)) for each in dataclasses.fields(self) if each.repr]
        shown = [f"{name}={value!r}" for name, value in named if value != getattr(defaults, name)]
        return f"Transform({', '.join(shown)})"

    def mean_image(self) -> Optional[np.ndarray[Any, np.dtype[np.float32]]]:
        """The mean image, read-only C-contiguous float32 (channels, height, width), or None without a mean file."""
        return self._mean_image


def _pixels(name: str, value: Any, none: str, most: int = _INT_MAX) -> Union[int, tuple[int, int]]:
    """An integer, or a pair of height and width."""
    pair = not isinstance(value, (numbers.Integral, str, bytes)) and isinstance(value, Iterable)
    numbers_given = tuple(value) if pair else (value,)
    for each in numbers_given:
        if not isinstance(each, numbers.Integral) or isinstance(each, bool):
            raise ValueError(f"{name} must be an integer, in pixels, or a pair of them, not {value!r}")
        if not 0 <= int(each) <= most:
            raise ValueError(f"{name} must lie between 0 ({none}) and {most}, it is {value}")
    if not pair:
        return int(value)
    if len(numbers_given) != 2:
        raise ValueError(f"{name} is one integer, or a pair (height, width), not {value!r}")
    first, second = (int(each) for each in numbers_given)
    if name != "padding" and not (first and second):
        raise ValueError(f"{name} has a height and a width of at least 1, not {value!r}")
    return (first, second) if first or second else 0


def _both(value: Union[int, tuple[int, int]]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _range(name: str, values: Any) -> tuple[float, float]:
    found = _numbers(name, values)
    if len(found) != 2 or not 0 < found[0] <= found[1]:
        raise ValueError(f"{name} is a pair of positive numbers, the smaller one first, not {values!r}")
    return found[0], found[1]


def _factors(name: str, value: Any) -> tuple[float, float]:
    """The range that a number or a pair stands for."""
    found = _numbers(name, value)
    if len(found) == 1 and isinstance(value, numbers.Real):
        found = (max(1 - found[0], 0.0), 1 + found[0])
    if len(found) != 2 or not 0 <= found[0] <= found[1]:
        raise ValueError(f"{name} is a positive number, or a pair of them, the smaller one first, not {value!r}")
    if found[1] > _MOST_FACTOR:
        raise ValueError(f"{name} is a factor of at most {_MOST_FACTOR:g}, not {value!r}")
    return found[0], found[1]


def _names(name: str, values: Any, example: str, least: int = 0) -> tuple[str, ...]:
    names = None
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        names = tuple(values)
    if names is None or len(names) < least or not all(isinstance(each, str) for each in names):
        raise ValueError(f"{name} are names{example}, not {values!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{name} are names{example}, each only once, not {values!r}")
    return names


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


def _scale(value: Any) -> float:
    if isinstance(value, (tuple, list)):
        raise ValueError(
            f"scale is a number, not {value!r}: the share of an image for random_resized_crop is crop_area"
        )
    return _number("scale", value)


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


def _divisors(values: Any) -> tuple[float, ...]:
    std = _numbers("std", values)
    for value in std:
        if value <= 0 or not 1 / (255 * value) <= _FLOAT_MAX or not 1 / value <= _FLOAT_MAX:
            raise ValueError(f"std must be positive, because values are divided by it, and is {value!r}")
    return std


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        *rest, last = (f'"{each}"' for each in choices)
        raise ValueError(f"{name} is {', '.join(rest)} or {last}, not {value!r}")
    return value


def _dtype(value: Any) -> str:
    try:
        name = np.dtype(value).name
    except TypeError:
        name = value
    return _choice("dtype", name, _DTYPES)


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
