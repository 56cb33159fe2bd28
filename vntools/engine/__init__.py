"""Typed ONNX to plan: the one place that imports tensorrt or tensorrt_rtx."""
