"""transform_param: what Caffe's DataTransformer makes of it, and when it is refused."""

from fastbatch.transforms import Transform


def transform_of(param, phase):
    """The Transform that a transform_param describes."""
    if param.force_color and param.force_gray:
        raise ValueError("cannot set both force_color and force_gray")
    if param.HasField("mean_file") and param.mean_value:
        raise ValueError("Cannot specify mean_file and mean_value at the same time: choose one of them")
    return Transform(crop_size=param.crop_size, mirror=param.mirror, scale=param.scale, mean_value=tuple(param.mean_value),
                     mean_file=param.mean_file if param.HasField("mean_file") else None, phase=phase)


def check_image(path, shape, transform):
    """Refuses at once what cannot be done to a source's first image, of this shape; on others it is an error of their batch."""
    channels, height, width = shape
    crop, means, mean_image = transform.crop_size, len(transform.mean_value), transform.mean_image()
    if crop > min(height, width):
        raise ValueError(f"{path}: crop_size {crop} is larger than its first image, {height} x {width} (in Caffe's words: "
                         f"Check failed: {'datum_height' if crop > height else 'datum_width'} >= crop_size)")
    if means > 1 and means != channels:
        raise ValueError(f"{path}: Specify either 1 mean_value or as many as channels: {channels}, not {means}")
    if mean_image is not None and mean_image.shape != shape:
        which = next(name for name, mean, own in zip(("channels", "height", "width"), mean_image.shape, shape) if mean != own)
        raise ValueError(f"{path}: its first image has shape {shape}, before cropping, but the mean image in {transform.mean_file} "
                         f"has {mean_image.shape} (in Caffe's words: Check failed: datum_{which} == data_mean_.{which}()); make the mean "
                         "file from this data")
