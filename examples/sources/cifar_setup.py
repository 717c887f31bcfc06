"""Compiles cifar.pyx against the installed fastbatch: python cifar_setup.py build_ext --inplace."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import fastbatch

extension = Extension("cifar", ["cifar.pyx"], include_dirs=[fastbatch.get_include()])
setup(name="cifar", ext_modules=cythonize([extension]))
