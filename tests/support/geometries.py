"""Geometries of transforms for hypothesis, and the batches that show them."""

import numpy as np
from hypothesis import strategies as st

from contracts import PATIENCE
from fastbatch import Loader, Transform
from pixel_reference import placed


def batch_of(source, seed=0, **parameters):
    """All samples in one batch."""
    transform = Transform(**parameters)
    with Loader(source, transform, batch_size=len(source), seed=seed, threads=2, timeout=PATIENCE) as loader:
        batch = next(iter(loader))
        return {name: batch[name].copy() for name in batch.names}


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@st.composite
def geometries(draw):
    """The size of an image, and the parameters of a geometry that fits it."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    parameters = {"mirror": draw(st.booleans())}
    side = st.integers(1, 50)
    if draw(st.integers(0, 3)) == 0:
        parameters["random_resized_crop"] = draw(side | st.tuples(side, side))
        if draw(st.booleans()):
            parameters["crop_area"] = (0.02, draw(st.floats(0.03, 1)))
            parameters["crop_ratio"] = (draw(st.floats(0.1, 1)), draw(st.floats(1, 10)))
        return height, width, parameters
    if draw(st.booleans()):
        parameters["resize"] = draw(st.integers(1, 30) | st.tuples(side, side))
    shown = placed(np.zeros((1, height, width), np.uint8), (0,) * 4, resize=parameters.get("resize", 0)).shape[1:]
    crop = (0, 0)
    if draw(st.booleans()):
        crop = draw(st.integers(1, shown[0])), draw(st.integers(1, shown[1]))
        parameters["crop_size"] = min(crop) if draw(st.booleans()) else crop
        crop = (min(crop),) * 2 if isinstance(parameters["crop_size"], int) else crop
        parameters["phase"] = draw(st.sampled_from(["TRAIN", "TEST"]))
    padding = tuple(draw(st.integers(0, min(4, cut - 1) if cut else 4)) for cut in crop)
    if draw(st.booleans()) and any(padding):
        parameters["padding"] = padding
    return height, width, parameters
