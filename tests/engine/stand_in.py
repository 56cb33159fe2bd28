"""TensorRT 10 and 11 without a GPU: a scripted module in the place of its builder."""

from __future__ import annotations

__all__ = ["ERROR", "VERBOSE", "WARNING", "Script", "inspector_json", "stand_in"]

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from vntools.engine.backend import Backend

ERROR, WARNING, VERBOSE = 1, 2, 4


def inspector_json(dtype: str) -> str:
    tensor = {"Dimensions": [1, 3, 8, 8], "Format/Datatype": dtype}
    layer = {
        "Name": "stem",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor | {"Name": "input"}],
        "Outputs": [tensor | {"Name": "logits"}],
        "Weights": {"Type": dtype, "Count": 48},
        "Metadata": "[ONNX Layer: stem]",
    }
    return json.dumps({"Layers": [layer], "Bindings": ["input", "logits"]})


@dataclass
class Script:
    """What the stand-in does, and what was done to it."""

    plan: bytes | None = b"a plan"
    says: tuple[tuple[int, str], ...] = ()
    raises: Exception | None = None
    before: Callable[[], None] = lambda: None
    inspector: str = field(default_factory=lambda: inspector_json("Half"))
    takes_cache: Callable[[bytes], bool] = lambda data: data in (b"", b"timings")
    null: tuple[str, ...] = ()
    parser: Callable[[bytes], bool] = lambda model: True
    seen: dict[str, Any] = field(default_factory=dict)


def stand_in(version: str, script: Script) -> Backend:
    """A module with the part of TensorRT's API that a build uses."""
    trt: Any = ModuleType("tensorrt")
    seen = script.seen

    class Base:
        pass

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if "builder" in script.null:
                logger.log(ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            seen["flags"] = flags
            tensor = {"dtype": SimpleNamespace(name="HALF"), "shape": (-1, 3, 8, 8)}
            return SimpleNamespace(
                num_inputs=1,
                num_outputs=1,
                get_input=lambda i: SimpleNamespace(name="input", **tensor),
                get_output=lambda i: SimpleNamespace(name="logits", **tensor),
            )

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda *shape: seen.update(shape=shape))

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            for severity, text in script.says:
                self.logger.log(severity, text)
            script.before()
            if script.raises is not None:
                raise script.raises
            go_on = all(monitor.step_complete("Building engine", i) for i in range(2))
            monitor.phase_finish("Building engine")
            return script.plan if go_on else None

    class Config:
        builder_optimization_level = 3

        def __init__(self) -> None:
            seen["config"] = self

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            seen["pool"] = (pool, size)

        def create_timing_cache(self, data: bytes) -> Any:
            return data if script.takes_cache(data) else None

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            seen["cache"], seen["ignore_mismatch"] = cache, ignore_mismatch
            return True

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: b"timings")

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            context = SimpleNamespace(set_input_shape=lambda *s: seen.update(inspected=s))
            return SimpleNamespace(
                create_execution_context=lambda: None if "context" in script.null else context,
                create_engine_inspector=lambda: SimpleNamespace(
                    get_engine_information=lambda form: script.inspector
                ),
            )

    trt.__version__ = version
    trt.ILogger = trt.IProgressMonitor = Base
    trt.Builder, trt.Runtime = Builder, Runtime
    trt.OnnxParser = lambda network, logger: SimpleNamespace(parse=script.parser, num_errors=0)
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace", TACTIC_SHARED_MEMORY="shared")
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    if version.startswith("10."):  # 11 may drop what it ignores
        trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    return Backend("tensorrt", version, trt)
