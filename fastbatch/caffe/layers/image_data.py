"""`ImageData`, a drop-in for Caffe's own ImageData layer: the same tops, shapes, order, shuffles and random draws.

The order of operations follows Caffe's image_data_layer.cpp, base_data_layer.cpp and data_transformer.cpp.
"""

import caffe

from fastbatch.caffe.layers import params
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import Message, Schema
from fastbatch.caffe.layers.transform_param import check_image, transform_of
from fastbatch.orders import Positions
from fastbatch.orders.caffe import CaffeLines
from fastbatch.sources._image_list import caffe_images

__all__ = ["ImageData"]


class ImageData(PrefetchingLayer):
    """Batches of images from the JPEG and PNG files in a list.

    Native threads decode, resize and transform the images as Caffe would, while the net computes.

    Tops: data, float32 (batch_size, channels, height, width), and label, float32 (batch_size,).

    Parameters: image_data_param, transform_param and (for prefetch alone) data_param, in the layer itself or in
    `param_str`. It also accepts the options threads, seed, resume, zero_copy, on_error, error_budget,
    cache_bytes, cache_folder, index_bytes and index_file (see docs/caffe-layer.md).

    Every solver reads all images, as in Caffe.
    """

    schema = Schema(
        "ImageData",
        messages={
            "image_data_param": Message(
                "ImageDataParameter",
                ("source", "batch_size", "rand_skip", "shuffle", "new_height", "new_width", "is_color", "root_folder"),
            ),
            "transform_param": params.TRANSFORM.without("force_color", "force_gray"),
            "data_param": params.PREFETCH,
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
            **params.moved("image_data_param"),
            "transform_param.force_color": "Caffe's ImageData ignores it. Write is_color in image_data_param { }.",
            "transform_param.force_gray": "Caffe's ImageData ignores it. "
            "Write is_color: false in image_data_param { }.",
            **params.prefetch_alone("image_data_param"),
        },
        required=["image_data_param.source"],
        example='image_data_param { source: "train.txt" root_folder: "images/" batch_size: 64 '
        "new_height: 256 new_width: 256 shuffle: true } "
        "transform_param { crop_size: 227 mirror: true }",
    )

    @classmethod
    def check(cls, parsed):
        """Reject also one side of a size without the other."""
        param = parsed.image_data_param
        if (param.new_height == 0) != (param.new_width == 0):
            raise ValueError(
                "Current implementation requires new_height and new_width to be set at the same time; they are "
                f"{param.new_height} and {param.new_width}"
            )
        super().check(parsed)

    def _open(self, parsed, top):
        param, prefetch = parsed.image_data_param, params.prefetch_of(parsed.data_param)
        where = params.text_of(param.source)
        try:
            transform = transform_of(parsed.transform_param, self.phase)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None
        self._log(f"Opening file {where}")
        self._source = caffe_images(
            params.path_of(param.source),
            params.path_of(param.root_folder),
            "color" if param.is_color else "gray",
            (param.new_height, param.new_width) if param.new_height else None,
            **params.index_options(parsed),
        )

        draws = self._stream(parsed)
        shuffle_seed, skip = None, 0

        def draw_order():
            nonlocal shuffle_seed, skip
            shuffle_seed, skip = self._draw_order(param, draws)

        seed = self._draw_seed(draws, transform, between=draw_order)
        order = CaffeLines(seed, transform, shuffle_seed, skip)
        first, _, _ = Positions(order, len(self._source)).at(0)
        shape = channels, height, width = self._source.shape_of(first)
        crop = transform.crop_size
        check_image(where, shape, transform)
        shapes = [(param.batch_size, channels, crop or height, crop or width), (param.batch_size,)]
        self._start(
            parsed,
            top,
            shapes,
            where=where,
            prefetch=prefetch,
            transform=transform,
            order=order,
        )

    def _draw_order(self, param, draws):
        """The seed of the shuffles (or None), and the number of lines to skip.

        Draws from Caffe's stream the numbers that its DataLayerSetUp draws.
        """
        count, shuffle_seed, skip = len(self._source), None, 0
        if param.shuffle:
            self._log("Shuffling data")
            shuffle_seed = draws.take()
        elif self.phase == caffe.TRAIN and caffe.solver_rank() > 0 and param.rand_skip == 0 and hasattr(caffe, "log"):
            caffe.log("Shuffling or skipping recommended for multi-GPU")
        self._log(f"A total of {count} images.")
        if param.rand_skip:
            skip = draws.take() % param.rand_skip
            self._log(f"Skipping first {skip} data points.")
            if skip >= count:
                raise ValueError(
                    f"{params.text_of(param.source)}: Not enough points to skip: it has {count}, and rand_skip: "
                    f"{param.rand_skip} drew {skip}"
                )
        return shuffle_seed, skip
