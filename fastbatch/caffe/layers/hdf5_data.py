"""`HDF5Data`, a drop-in for Caffe's own HDF5Data layer: the same tops, shapes, order, ranks and shuffles.

The order of operations follows Caffe's hdf5_data_layer.cpp and util/hdf5.cpp. Caffe reads each file inside the
forward() that exhausts the previous file, while the net waits. Here, a thread has already read it by then.
"""

import functools

import caffe

from fastbatch import _features
from fastbatch._files import read_file
from fastbatch._text import counted
from fastbatch.caffe.layers import params
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import Message, Option, Schema
from fastbatch.errors import DataTimeout, SourceError
from fastbatch.orders.caffe import CaffeRows

__all__ = ["HDF5Data"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first bytes of an HDF5 file
_ATTEMPTS = 100  # to predict a shuffle while other threads draw from rand()
_SLICE = 0.01  # seconds that forward() waits for a batch before it checks whether it must read a file itself


class HDF5Data(PrefetchingLayer):
    """Batches of rows from HDF5 files, with any number of datasets of any shape.

    Native threads assemble the batches while the net computes.

    Tops: float32. Each is the dataset of its name, with shape (batch_size, ...) where a row has shape (...).

    Parameters: hdf5_data_param and (for prefetch alone) data_param, in the layer itself or in `param_str`. `param_str`
    also accepts the options threads, resume, zero_copy and datasets (see docs/caffe-layer.md).

    Two files are in memory at a time, as float32; Caffe holds one. If libhdf5 is not thread-safe, forward() reads the
    files itself, as Caffe does.
    """

    schema = Schema(
        "HDF5Data",
        messages={
            "hdf5_data_param": Message("HDF5DataParameter", ("source", "batch_size", "shuffle")),
            "data_param": params.PREFETCH,
            "transform_param": Message("TransformationParameter", ()),
        },
        options=[
            params.THREADS,
            params.RESUME,
            params.ZERO_COPY,
            Option(
                "datasets",
                "string",
                "the names of the datasets, one for each top, separated by spaces; by default those of the tops",
            ),
        ],
        ignored=params.prefetch_alone("hdf5_data_param"),
        absent={
            **dict.fromkeys(
                ("on_error", "error_budget"),
                "A file that cannot be read does not say how many rows it has, and so not which rows follow in Caffe's "
                "order. Take such files from the list.",
            ),
            **params.no_cache("HDF5 files have no images to decode"),
        },
        refused={"transform_param": "HDF5Data does not transform data. Leave it out."},
        required=["hdf5_data_param.source", "hdf5_data_param.batch_size"],
        example='hdf5_data_param { source: "train.txt" batch_size: 64 shuffle: true } threads: 2',
    )
    top_counts = (1, None)

    @classmethod
    def check(cls, parsed):
        """Reject also what cannot be resumed."""
        if parsed.resume and parsed.hdf5_data_param.shuffle:
            raise ValueError(
                "resume: true cannot restore shuffle: true, because HDF5Data shuffles with C's rand(), as Caffe does, "
                "and shares it with everything else in the process. Leave out one of the two"
            )
        super().check(parsed)

    def _open(self, parsed, top):
        hdf5 = _features.require("hdf5")
        param, prefetch = parsed.hdf5_data_param, params.prefetch_of(parsed.data_param)
        path, where = params.path_of(param.source), params.text_of(param.source)
        self._log(f"Loading list of HDF5 filenames from: {where}")
        try:
            content = read_file(path, len(_SIGNATURE))
            if content != _SIGNATURE:  # otherwise it is an HDF5 file, which may be larger than memory
                content = read_file(path)
        except OSError as problem:
            raise SourceError(f"Failed to open source file: {where}: {problem.strerror}") from None
        if content == _SIGNATURE:
            raise SourceError(
                f"{where}: source names a list of files, not an HDF5 file: write the path of this one into a text "
                "file, and name that"
            )
        paths = hdf5.parse_list(content, where)
        self._log(f"Number of HDF5 files: {len(paths)}")
        every = self.phase == caffe.TEST  # every rank tests on everything
        rank, ranks = (0, 1) if every else (caffe.solver_rank(), caffe.solver_count())
        self._source = hdf5.CaffeHDF5(paths, self._names(parsed, top), source=where)
        self._order = CaffeRows(self._source, param.batch_size, rank, ranks, param.shuffle)
        for name in self._source.classes:
            _log_class(name)
        self._shapes = [(param.batch_size, *shape) for shape in self._source.shapes]
        self._shuffles = param.shuffle
        self._start(parsed, top, self._shapes, where=where, prefetch=prefetch, order=self._order)

    def _names(self, parsed, top):
        """The names of the datasets, one for each top."""
        names = parsed.datasets.split()
        if not names and self._param.message is None:
            raise ValueError(
                "the names of the tops, which are those of the datasets, can't be read here, because "
                f'{self._param.reason}: write them into param_str, as in datasets: "data label"'
            )
        names = names or list(self._param.message.top)
        if len(names) != len(top):
            raise ValueError(
                f'datasets names {counted(len(names), "dataset")} ("{parsed.datasets}"), but {self._param} has '
                + counted(len(top), "top")
            )
        return names

    def _log_shape(self, shape):
        """Do nothing: Caffe's own layer does not log the shape."""

    def _shape(self, batch, number):
        return self._shapes[number]  # in the ring's batches, rows are one-dimensional

    def _batch(self):
        for _ in range(_ATTEMPTS):
            batch = super()._batch() if self._source.threaded else self._read_and_take()
            again = self._order.settle(batch.number) if self._shuffles else None
            if again is None:
                return batch
            # Give up first: until the ring restarts, settle() also rejects whatever follows this batch.
            self._showing.give_up()
            self._ring.start_epoch(0, again)
        raise RuntimeError(
            f"{self._param}: another thread draws from C's rand() all the time, so that the rows cannot be shuffled "
            "with Caffe's numbers"
        )

    def _read_and_take(self):
        """The next batch, if files are read on this thread."""
        while True:
            self._source.read_ahead()
            try:
                return self._showing.take(self._ring.next, _SLICE)
            except DataTimeout:
                pass  # the order may have requested another file meanwhile

    def _end(self):
        if self._source is not None:
            self._source.close()  # first: a worker may be waiting for a file
        super()._end()


@functools.cache  # like Caffe, log it once per process
def _log_class(name):
    if hasattr(caffe, "log"):
        caffe.log(f"Datatype class: {name}")
