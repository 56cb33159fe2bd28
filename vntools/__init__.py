"""Deployment toolchain for VanillaNet and other linearly over-parameterised networks."""

__version__ = "0.1.0"
