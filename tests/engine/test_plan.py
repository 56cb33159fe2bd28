"""What may be given to TensorRT, decided before it is called."""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.plans import PLAN, sidecar_of
from vntools.base.artifacts import sha256_bytes, sidecar_path, write_sidecar_bytes
from vntools.base.errors import VntoolsError
from vntools.engine import plan as module
from vntools.engine.backend import Backend
from vntools.engine.plan import SIDECAR_ONLY, Trust, read_plan, rebuild
from vntools.runtime import trt_runner
from vntools.runtime.trt_runner import open_plan

DIGEST = sha256_bytes(PLAN)
ANY = Trust(any_plan=True)
PINNED = Trust(sha256=("0" * 64, DIGEST))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A plan beside its sidecar."""
    plan = tmp_path / "net.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_bytes(write_sidecar_bytes(sidecar_of(PLAN)))
    return plan


def refusal(path: Path, trust: Trust = SIDECAR_ONLY, gpu: int | None = 80) -> str:
    with pytest.raises(VntoolsError) as e:
        read_plan(path, trust, compute_capability=gpu)
    return f"{e.value.code}: {e.value.line()}"


# ------------------------------------------------------------------------------------- trust


@pytest.mark.parametrize("trust", [SIDECAR_ONLY, ANY, PINNED])
def test_a_plan_beside_its_sidecar_is_read(path: Path, trust: Trust) -> None:
    plan = read_plan(path, trust, compute_capability=80)
    assert (plan.data, plan.sidecar) == (PLAN, sidecar_of(PLAN))


@pytest.mark.parametrize("trust", [ANY, PINNED])
def test_without_a_sidecar_the_user_vouches_for_it(path: Path, trust: Trust) -> None:
    sidecar_path(path).unlink()
    plan = read_plan(path, trust, compute_capability=80)
    assert plan.sidecar == {"flavour": "tensorrt", "sha256": DIGEST}
    assert refusal(path).startswith("plan.untrusted: ")


@pytest.mark.parametrize("trust", [SIDECAR_ONLY, ANY, PINNED])
def test_nobody_can_vouch_for_a_damaged_plan_or_sidecar(path: Path, trust: Trust) -> None:
    path.write_bytes(PLAN + b"\0")
    assert refusal(path, trust).startswith("plan.sha256: ")
    path.write_bytes(PLAN)
    sidecar_path(path).write_bytes(b"{}")
    assert refusal(path, trust).startswith("plan.manifest: ")


def test_a_pin_holds_where_plan_and_sidecar_were_both_replaced(path: Path) -> None:
    other = PLAN + b"other"
    path.write_bytes(other)
    sidecar_path(path).write_bytes(write_sidecar_bytes(sidecar_of(other)))
    assert read_plan(path, SIDECAR_ONLY, compute_capability=80).data == other
    assert refusal(path, PINNED).startswith("plan.sha256: ")
    assert sha256_bytes(other) in refusal(path, PINNED)


@pytest.mark.parametrize("mode", [0o666, 0o646])
@pytest.mark.parametrize("name", ["net.plan", "net.plan.json"])
def test_a_file_that_others_can_write(path: Path, name: str, mode: int) -> None:
    path.with_name(name).chmod(mode)
    assert refusal(path).startswith("plan.perms: ")
    for trust in (ANY, PINNED):
        read_plan(path, trust, compute_capability=80)


def test_a_folder_that_others_can_write(path: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert "can be written by others" in refusal(path)
    tmp_path.chmod(0o1777)  # as /tmp: nobody can replace what is the user's
    read_plan(path, SIDECAR_ONLY, compute_capability=80)


def test_a_link_is_judged_by_where_it_points(path: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    path.rename(far / "p")
    path.symlink_to(far / "p")
    read_plan(path, SIDECAR_ONLY, compute_capability=80)
    far.chmod(0o777)
    assert refusal(path).startswith("plan.perms: ")


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "why"),
    [
        (1000, 1000, 0o100644, ""),
        (0, 0, 0o100644, ""),
        (1000, 1000, 0o100664, ""),
        (1000, 100, 0o100664, "can be written by others"),
        (1000, 1000, 0o100646, "can be written by others"),
        (1001, 1001, 0o100644, "belongs to user 1001"),
        (0, 0, 0o041777, ""),
        (0, 0, 0o040777, "can be written by others"),
    ],
)
def test_who_else_can_write(
    monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, mode: int, why: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    about = os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert module._other_writer(about) == why


# --------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("built_for", "here", "loads"),
    [([80], 80, True), ([80, 89], 89, True), ([], 90, True), ([80], None, True),
     ([80], 89, False), ([86, 89], 80, False)],
)  # fmt: skip
def test_a_plan_is_for_the_gpus_that_it_names(
    path: Path, built_for: list[int], here: int | None, loads: bool
) -> None:
    sidecar = sidecar_of(PLAN) | {"compute_capabilities": built_for}
    sidecar_path(path).write_bytes(write_sidecar_bytes(sidecar))
    if loads:
        read_plan(path, SIDECAR_ONLY, compute_capability=here)
    else:
        assert refusal(path, gpu=here).startswith("plan.gpu: ")


@pytest.mark.parametrize(
    "changes",
    [{"flavour": "openvino"}, {"flavour": []}, {"version": None},
     {"compute_capabilities": None}, {"compute_capabilities": ["80"]}],
)  # fmt: skip
def test_a_sidecar_without_what_a_plan_is_loaded_by(
    path: Path, changes: dict[str, Any]
) -> None:
    sidecar_path(path).write_bytes(write_sidecar_bytes(sidecar_of(PLAN) | changes))
    assert refusal(path).startswith("plan.manifest: ")


# ------------------------------------------------------------------------------------ rebuild


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({}, "net.plan", "net.onnx --fp16"),
        ({"precision": "fp32"}, "net.plan", "net.onnx"),
        ({"precision": "int8"}, "net.plan", "net.onnx --int8 --calib DIR"),
        ({"io_type": "fp16"}, "net.plan", "net.onnx --fp16 --io-type fp16"),
        ({}, "fast.plan", "net.onnx --fp16 --out fast.plan"),
        (
            {"flavour": "tensorrt-rtx", "compute_capabilities": [89]},
            "net.plan",
            "net.onnx --fp16 --backend tensorrt-rtx --compute-capability 8.9",
        ),
        (
            {"profile": {"input": {"min": [2], "opt": [4], "max": [16]}}},
            "net.plan",
            "net.onnx --fp16 --min-batch 2 --opt-batch 4 --max-batch 16",
        ),
        ({"inputs": [{"name": "input", "shape": [1, 3]}]}, "net.plan", "net.onnx --fp16"),
        ({"profile": None}, "net.plan", ""),
        ({"precision": "; reboot"}, "net.plan", ""),
        ({"source": {"name": "../a b;reboot.onnx"}}, "a b;reboot.plan",
         "'a b;reboot.onnx' --fp16"),
    ],
)  # fmt: skip
def test_the_command_that_builds_it_again(
    changes: dict[str, Any], name: str, words: str
) -> None:
    hint = rebuild(sidecar_of(PLAN) | changes, Path("folder", name))
    assert hint == f"rebuild it: vntools build-engine {words}".rstrip()


def test_the_command_is_one_that_build_engine_takes(path: Path) -> None:
    from vntools.cli.build_engine import command

    profile = {"input": {"min": [2], "opt": [4], "max": [16]}}
    for precision in ("fp32", "fp16", "bf16", "int8"):
        sidecar = sidecar_of(PLAN) | {"precision": precision, "profile": profile}
        said = rebuild(sidecar | {"flavour": "tensorrt-rtx"}, "other.plan")
        _, name, *words = shlex.split(said.removeprefix("rebuild it: "))
        context = command.make_context(name, words)
        assert context.params["model"] == Path("net.onnx")
        assert context.params["opt_batch"] == 4


# --------------------------------------------------------------------------------------- fuzz


class Untouchable:
    """A TensorRT of which nothing but the version may be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"TensorRT was asked for {name}")


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randint(1, 40) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def replace(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(2 * len(data)))


@pytest.mark.parametrize("name", ["net.plan", "net.plan.json"])
@pytest.mark.parametrize("damage", [flip, cut, drop, insert, replace])
def test_damage_is_refused_before_tensorrt_is_called(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[bytes, random.Random], bytes],
) -> None:
    """Of a plan and its sidecar, with and without the user's word; 50 seeds each."""
    untouchable: Any = Untouchable()
    monkeypatch.setattr(trt_runner, "gpu_count", lambda: 1)
    monkeypatch.setattr(trt_runner, "compute_capability", lambda: 80)
    monkeypatch.setattr(trt_runner, "load", lambda name: Backend(name, "11.4.1", untouchable))
    target = path.with_name(name)
    whole = target.read_bytes()
    assert open_plan(path).details["sha256"] == DIGEST  # the undamaged one is taken
    for seed in range(50):
        rng = random.Random(seed)
        target.write_bytes(damage(whole, rng))
        if target.read_bytes() == whole:
            continue
        with pytest.raises(VntoolsError) as e:
            open_plan(path, rng.choice([SIDECAR_ONLY, ANY, PINNED]))
        assert (e.value.exit_status, e.value.code.partition(".")[0]) == (65, "plan"), seed
