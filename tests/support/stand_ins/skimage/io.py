"""pycaffe imports it, and uses it when it reads an image."""
