"""`WindowData`, a drop-in for Caffe's own WindowData layer: the same tops, windows, random draws and pixels.

The order of operations follows Caffe's window_data_layer.cpp and base_data_layer.cpp.
"""

import os

import numpy as np

from fastbatch._files import read_file
from fastbatch.caffe.layers import params
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import Message, Schema
from fastbatch.caffe.layers.transform_param import transform_of
from fastbatch.errors import SourceError
from fastbatch.orders.caffe import CaffeSampling
from fastbatch.sources._windows import COLUMNS, CaffeWindows, parse_windows

__all__ = ["WindowData"]

_CHANNELS = 3


class WindowData(PrefetchingLayer):
    """Batches of image windows from a window file, for detectors such as R-CNN.

    Native threads sample from the background and the foreground windows and warp them to squares, while the net
    computes.

    Tops: data, float32 (batch_size, 3, crop_size, crop_size), and label, float32 (batch_size,), 0 for the background.

    Parameters: window_data_param, transform_param and (for prefetch alone) data_param, in the layer itself or in
    `param_str`. `param_str` also accepts the options threads, seed, resume, zero_copy, on_error, error_budget,
    index_bytes and index_file (see docs/caffe-layer.md).

    Every solver samples from all windows, as in Caffe.

    The window file is read once, in setup(). Each window then takes 28 bytes of memory.
    """

    schema = Schema(
        "WindowData",
        messages={
            "window_data_param": Message(
                "WindowDataParameter",
                (
                    "source",
                    "scale",
                    "batch_size",
                    "fg_threshold",
                    "bg_threshold",
                    "fg_fraction",
                    "context_pad",
                    "crop_mode",
                    "cache_images",
                    "root_folder",
                ),
            ),
            "transform_param": params.TRANSFORM.without("scale", "force_color", "force_gray"),
            "data_param": params.PREFETCH,
        },
        options=[
            params.THREADS,
            params.SEED,
            params.RESUME,
            params.ZERO_COPY,
            params.ON_ERROR,
            params.ERROR_BUDGET,
            params.INDEX_BYTES,
            params.INDEX_FILE,
        ],
        ignored={
            **params.moved("window_data_param", "mean_file", "crop_size", "mirror"),
            "transform_param.scale": "Caffe's WindowData ignores it: "
            "write scale in window_data_param { }, where it works.",
            **dict.fromkeys(
                ("transform_param.force_color", "transform_param.force_gray"),
                "Caffe's WindowData ignores it: it reads all images in color. Leave it out.",
            ),
            **params.prefetch_alone("window_data_param"),
        },
        absent=params.no_cache("WindowData decodes another part of an image for each window"),
        required=["window_data_param.source", "window_data_param.batch_size"],
        example='window_data_param { source: "windows.txt" batch_size: 128 context_pad: 16 } '
        "transform_param { crop_size: 227 mirror: true mean_value: 117 }",
    )

    @classmethod
    def check(cls, parsed):
        """Reject also parameters with which Caffe would abort or do something else than they say."""
        super().check(parsed)
        param = parsed.window_data_param
        side, pad = parsed.transform_param.crop_size, param.context_pad
        if side < 1:
            raise ValueError(
                "crop_size must be 1 or more, in transform_param { } (in Caffe's words: Check failed: crop_size > 0)"
            )
        if 2 * pad >= side:
            raise ValueError(
                f"context_pad {pad} on each side leaves nothing of crop_size {side} for the window; Caffe would divide "
                "by zero"
            )
        if param.crop_mode not in ("warp", "square"):
            raise ValueError(
                f'crop_mode is "{param.crop_mode}"; it can be "warp" or "square", and Caffe would take any other for '
                '"warp"'
            )
        if not 0 <= param.fg_fraction <= 1:
            raise ValueError(
                f"fg_fraction is {param.fg_fraction:g}; it must lie between 0 and 1, because Caffe would write beyond "
                "the batch"
            )

    def _open(self, parsed, top):
        param, prefetch, where = (
            parsed.window_data_param,
            params.prefetch_of(parsed.data_param),
            params.text_of(parsed.window_data_param.source),
        )
        try:
            transform = transform_of(parsed.transform_param, self.phase)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None
        self._mean_file = params.text_of(parsed.transform_param.mean_file) if transform.mean_file is not None else None
        if self._root:
            self._log_mean_file()  # as the DataTransformer does that Caffe's WindowData has and does not use

        draws = self._stream(parsed)

        def sample_windows():
            self._source, self._order = self._sampler(parsed, transform, draws)

        self._draw_seed(draws, transform, between=sample_windows)
        side = transform.crop_size
        shapes = [(param.batch_size, _CHANNELS, side, side), (param.batch_size,)]
        self._start(parsed, top, shapes, where=where, prefetch=prefetch, order=self._order)

    def _log(self, text, all_solvers=True):
        """Log from every solver, as Caffe's own layer does."""
        super()._log(text, all_solvers)

    def _log_mean_file(self):
        if self._mean_file is not None:
            self._log(f"Loading mean file from: {self._mean_file}")

    def _log_shape(self, shape):
        super()._log_shape(shape)
        self._log_mean_file()

    def _sampler(self, parsed, transform, draws):
        """The source and the order. Draws from Caffe's stream and logs as Caffe's DataLayerSetUp does."""
        param = parsed.window_data_param
        where = params.text_of(param.source)
        self._log(
            f"Window data layer:\n  foreground (object) overlap threshold: {param.fg_threshold:g}\n"
            f"  background (non-object) overlap threshold: {param.bg_threshold:g}\n"
            f"  foreground sampling fraction: {param.fg_fraction:g}\n  cache_images: {param.cache_images:d}\n"
            f"  root_folder: {params.text_of(param.root_folder)}"
        )
        seed = draws.take()
        try:
            content = read_file(params.path_of(param.source))
        except OSError as problem:
            raise SourceError(f"Failed to open window file {where}: {problem.strerror}") from None
        root = os.fsencode(params.path_of(param.root_folder))
        images, foreground, background = parse_windows(content, where, root, param.fg_threshold, param.bg_threshold)
        del content  # it may be large
        self._log_found(param, images, foreground, background)
        windows = CaffeWindows(
            images,
            foreground,
            background,
            source=where,
            root_folder=root,
            crop_size=transform.crop_size,
            context_pad=param.context_pad,
            square=param.crop_mode == "square",
            scale=param.scale,
            mean_values=transform.mean_value,
            mean_image=transform.mean_image(),
            cache_images=param.cache_images,
            tolerant=parsed.on_error != "raise",
            **params.index_options(parsed),
        )
        foreground_count = int(np.float32(param.batch_size) * np.float32(param.fg_fraction))
        return windows, CaffeSampling(
            seed, len(background), len(foreground), param.batch_size, foreground_count, transform.mirror
        )

    def _log_found(self, param, images, foreground, background):
        for number in range(0, len(images), 100):
            path, height, width, windows = images[number]
            self._log(
                f"num: {number} {path.decode('utf-8', 'replace')} {_CHANNELS} {height} {width} windows to process: "
                f"{windows}"
            )
        self._log(f"Number of images: {len(images)}")
        counts = {0: len(background)}
        counts.update(zip(*np.unique(foreground[:, COLUMNS.index("label")], return_counts=True)))
        for label, count in sorted(counts.items()):
            self._log(f"class {label} has {count} samples")
        self._log(f"Amount of context padding: {param.context_pad}")
        self._log(f"Crop mode: {param.crop_mode}")
