"""Packages are found: models/ and export/ are installed as vntools.models, vntools.export."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["vntools", "vntools.*"])
    + [
        f"vntools.{p}"
        for p in find_packages(include=["models", "models.*", "export", "export.*"])
    ]
)
