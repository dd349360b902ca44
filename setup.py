"""What pyproject.toml cannot say: the native kernels, which are optional (focal/ckks/native/build.py)."""

from setuptools import setup

setup(cffi_modules=["focal/ckks/native/build.py:builder"])
