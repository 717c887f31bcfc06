"""pycaffe imports a function, and uses it when it resizes an image."""

resize = None
