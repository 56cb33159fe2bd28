"""Deployment toolchain for VanillaNet and other linearly over-parameterised networks."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports what it runs to its makers (from 1.29 on, outside Windows too), unless
# this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
