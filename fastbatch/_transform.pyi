from collections.abc import Sequence
from typing import Any, Optional, final

import numpy

from fastbatch.transforms import Transform

@final
class NativeTransform:
    def __init__(self, transform: Optional[Transform], caffe_draws: bool = False) -> None: ...
    def check(self, shape: tuple[int, int, int]) -> tuple[int, int, int]: ...
    def apply(self, image: numpy.ndarray[Any, Any], draws: Sequence[int], out: numpy.ndarray[Any, Any]) -> None: ...
