"""Compiles cifar.pyx and series.pyx against the installed fastbatch: python cython_setup.py build_ext --inplace."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import fastbatch

names = ["cifar", "series"]
extensions = [Extension(name, [name + ".pyx"], include_dirs=[fastbatch.get_include()]) for name in names]
setup(name="examples", ext_modules=cythonize(extensions))
