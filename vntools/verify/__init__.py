"""Proof that nothing was lost: a float64 evaluator of ONNX graphs, and comparisons."""
