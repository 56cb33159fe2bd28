"""The chain: checkpoint to verified ONNX, any ONNX to verified ONNX, verified ONNX to plan.

Each function takes an options dataclass and a listener, checks what is cheap first, publishes
last, and returns what it did. Heavy imports are made on the way.
"""
