"""Decodes single images; loaders decode in their own threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastbatch import _features

__all__ = ["decode_image"]

if TYPE_CHECKING or _features.problem("jpeg") is None:
    from fastbatch.images._codec import decode_image
else:

    def decode_image(bytes, color="color", size=None, region=None):
        """Raises MissingLibraryError, because this fastbatch was built without libjpeg-turbo or libpng."""
        _features.require("jpeg")
