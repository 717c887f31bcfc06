"""A stand-in for scikit-image, which pycaffe imports for functions of its own, with matplotlib and much of SciPy."""
