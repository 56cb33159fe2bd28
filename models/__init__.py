"""Architectures as data, training-form modules, checkpoints and deep training."""

if __name__ != "vntools.models":
    raise ImportError("import vntools.models: the folder models/ is installed under that name")
