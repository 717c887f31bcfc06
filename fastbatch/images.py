"""Decoding of single images; loaders decode in their own threads."""

from fastbatch import _features

__all__ = ["decode_image"]

if _features.problem("jpeg") is None:
    from fastbatch._images import decode_image
else:

    def decode_image(bytes, color="color", size=None, region=None):
        """Stands in where fastbatch was built without libjpeg-turbo or libpng: raises MissingLibraryError, which says what to install."""
        _features.require("jpeg")
