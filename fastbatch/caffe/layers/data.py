"""`Data`, a drop-in for Caffe's own Data layer: the same tops, shapes, order, wrap-around, ranks and random draws.

What it does in which order follows Caffe's data_layer.cpp, base_data_layer.cpp and data_transformer.cpp.
"""

import caffe

from fastbatch.caffe.layers import params
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import Message, Schema
from fastbatch.caffe.layers.transform_param import check_image, color_of, transform_of
from fastbatch.orders.caffe import CaffeRecords
from fastbatch.sources import LevelDBSource, LMDBSource

__all__ = ["Data"]


class Data(PrefetchingLayer):
    """Batches of Datum records from a LevelDB or LMDB database.

    Native threads read and transform the records as Caffe would, while the net computes.

    Tops: data, float32 (batch_size, channels, height, width), and optionally label, float32 (batch_size,).

    Parameters: data_param and transform_param, in the layer itself (as for Caffe's own layer) or in `param_str`.
    `param_str` also accepts the options threads, seed, resume, zero_copy, on_error, error_budget,
    cache_bytes, cache_folder, index_bytes and index_file (see docs/caffe-layer.md).
    """

    schema = Schema(
        "Data",
        messages={
            "data_param": Message("DataParameter", ("source", "batch_size", "backend", "prefetch")),
            "transform_param": params.TRANSFORM,
        },
        options=[
            params.THREADS,
            params.SEED,
            params.RESUME,
            params.ZERO_COPY,
            params.ON_ERROR,
            params.ERROR_BUDGET,
            params.CACHE_BYTES,
            params.CACHE_FOLDER,
            params.INDEX_BYTES,
            params.INDEX_FILE,
        ],
        ignored={
            **params.moved("data_param"),
            "data_param.rand_skip": "Caffe's Data layer has no random skip any more and ignores it. Leave it out.",
            "data_param.force_encoded_color": "Caffe ignores it. "
            "Write force_color: true in transform_param { }, where it works.",
        },
        required=["data_param.source", "data_param.batch_size"],
        example='data_param { source: "train_lmdb" backend: LMDB batch_size: 64 } '
        "transform_param { crop_size: 227 mirror: true } threads: 4",
    )
    top_counts = (1, 2)

    def _open(self, parsed, top):
        param = parsed.data_param
        path, where, prefetch = params.path_of(param.source), params.text_of(param.source), params.prefetch_of(param)
        try:
            transform = transform_of(parsed.transform_param, self.phase)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None
        color = color_of(parsed.transform_param)
        if param.backend == param.LMDB:
            self._source = LMDBSource(path, color, **params.index_options(parsed))
            self._log(f"Opened lmdb {where}")
        else:
            self._source = LevelDBSource(path, color, **params.index_options(parsed))
            self._log(f"Opened leveldb {where}", all_solvers=True)
        seed = self._draw_seed(self._stream(parsed), transform)

        channels, height, width = self._source.shape
        crop = transform.crop_size
        check_image(where, self._source.shape, transform)
        shapes = [(param.batch_size, channels, crop or height, crop or width), (param.batch_size,)]
        self._epoch = 0
        every = self.phase == caffe.TEST  # every rank tests on everything
        self._start(
            parsed,
            top,
            shapes,
            where=where,
            prefetch=prefetch,
            transform=transform,
            order=CaffeRecords(
                seed, transform, rank=0 if every else caffe.solver_rank(), ranks=1 if every else caffe.solver_count()
            ),
        )

    def _jumped(self):
        self._epoch = None

    def _shows(self):
        if self._epoch is None:
            self._epoch = self._showing.shown.epoch
        while self._epoch < self._showing.shown.epoch:
            self._epoch += 1
            self._log("Restarting data prefetching from start.")
