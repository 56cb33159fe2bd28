"""From a training module to a merged, verified ONNX graph."""

if __name__ != "vntools.export":
    raise ImportError("import vntools.export: the folder export/ is installed under that name")
