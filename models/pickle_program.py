"""What a pickle would do, worked out without doing it.

The unpickler of ``torch.load(weights_only=True)`` imports nothing that is not allowed. Still a
small pickle can make it allocate without bound (``FloatStorage(10**12)``, one dict copied into
thousands of others), hash for ever (a nested tuple as a key), or overflow the C stack. So each
opcode is run first on stand-ins, and all but what ``torch.save`` writes for tensors in dicts
and lists beside an ``argparse.Namespace`` is refused.
"""

from __future__ import annotations

__all__ = ["StorageClaim", "check_pickle"]

import pickletools
from dataclasses import dataclass
from typing import cast

from vntools.base.errors import DataFault

_MAX_OPCODES = 1_000_000  # some 15 000 tensors with their names
_MAX_KEY = 1 << 63  # larger integers can be chosen to have one hash
_ITEM_BYTES = {
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Double": 8,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}
_STORAGES = {f"torch.{name}Storage": size for name, size in _ITEM_BYTES.items()}
_ORDERED_DICT = "collections.OrderedDict"
_NAMESPACE = "argparse.Namespace"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {*_STORAGES, _ORDERED_DICT, _NAMESPACE, _TENSOR, _PARAMETER}
_RESAVE = 're-save the weights alone: torch.save({"model": state_dict}, ...)'
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "BINUNICODE",
    "LONG1",
    "SHORT_BINSTRING",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(frozen=True)
class StorageClaim:
    """A storage that the pickle asks for: the record ``data/KEY``, and its size in bytes."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(eq=False, slots=True)
class _Made:
    """An object that would be made; ``copied`` once another one has taken its items."""

    kind: str
    copied: bool = False


def check_pickle(data: bytes) -> frozenset[StorageClaim]:
    """The storages that a pickle asks for, once it is known to be one of ``torch.save``.

    Raises:
        DataFault: ``ckpt.unsafe``: it does anything else; ``ckpt.too_big``: more than a
            million opcodes; ``ckpt.format``: it is damaged.
    """
    program = _Program()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_OPCODES:
                raise DataFault("ckpt.too_big", "its pickle is too long", hint=_RESAVE)
            program.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError) as e:
        raise DataFault("ckpt.format", "its pickle is damaged") from e
    return frozenset(program.claims)


def _unsafe(what: str) -> DataFault:
    return DataFault("ckpt.unsafe", what, hint=_RESAVE)


class _Program:
    """The stack machine of the unpickler, over stand-ins.

    A value is a literal, a tuple, a :class:`_Global` or a :class:`_Made`.
    """

    def __init__(self) -> None:
        self.claims: set[StorageClaim] = set()
        self._stack: list[object] = []
        self._below: list[list[object]] = []  # the stacks under each MARK
        self._memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        """Run one opcode."""
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[cast("int", argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[cast("int", argument)])
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            items = self._pop_mark()
            self._stack.append(tuple(items))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(_Made(name))
        elif name == "GLOBAL":
            self._push_global(str(argument).replace(" ", ".", 1))
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_mark())
        elif name in ("APPEND", "APPENDS"):
            _ = self._pop(1) if name == "APPEND" else self._pop_mark()
            self._require_target("EMPTY_LIST")
        elif name in ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self._make(name)
        elif name == "PROTO":
            if argument != 2:
                raise _unsafe(f"is pickled with protocol {argument}; torch.save's is 2")
        elif name == "STOP":
            self._pop(1)
        else:
            raise _unsafe(f"asks for the pickle opcode {name}")

    def _pop(self, count: int) -> list[object]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[object]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _push_global(self, name: str) -> None:
        if name not in _GLOBALS:
            if name.startswith("torch._utils._rebuild_") or name.endswith("Storage"):
                raise DataFault("ckpt.tensor", f"holds a tensor of no plain kind: {name}")
            raise _unsafe(f"asks to import {name}")
        self._stack.append(_Global(name))

    def _require_target(self, *kinds: str) -> None:
        target = self._stack[-1]
        if not isinstance(target, _Made) or target.kind not in kinds:
            raise _unsafe("puts items into what is no dict or list")

    def _set_items(self, items: list[object]) -> None:
        for key in items[::2]:
            small = not isinstance(key, int) or abs(key) < _MAX_KEY
            if isinstance(key, (tuple, _Global, _Made)) or not small:
                raise _unsafe("has a dict key that is neither a text nor a small number")
        if len(items) % 2:
            raise IndexError
        self._require_target("EMPTY_DICT", _ORDERED_DICT)

    def _make(self, name: str) -> None:
        """Push what would be made, if it is a storage, a tensor, a dict or a namespace."""
        if name == "BINPERSID":
            (claimed,) = self._pop(1)
            self.claims.add(_claim(claimed))
            self._stack.append(_Made("storage"))
            return
        left, right = self._pop(2)
        if name == "BUILD":
            _check_build(left, right)
            self._stack.append(left)
            return
        function = left.name if isinstance(left, _Global) else ""
        fits = isinstance(right, tuple) and _fits(name, function, right)
        if not fits:
            raise _unsafe(f"makes {function or 'something'} as torch.save does not")
        kind = "tensor" if function in (_TENSOR, _PARAMETER) else function
        self._stack.append(_Made(kind))


def _claim(claimed: object) -> StorageClaim:
    """``("storage", type, key, location, number of items)``."""
    match claimed:
        case ("storage", _Global(storage), str(key), str(), int(count)) if (
            storage in _STORAGES and count >= 0
        ):
            return StorageClaim(key, count * _STORAGES[storage])
        case _:
            raise _unsafe("asks for data that is no storage")


def _check_build(target: object, state: object) -> None:
    """Attributes are set from one dict each, so that no dict is copied again and again."""
    settable = isinstance(target, _Made) and target.kind in (_ORDERED_DICT, _NAMESPACE)
    if not (settable and isinstance(state, _Made) and state.kind == "EMPTY_DICT"):
        raise _unsafe("sets attributes as torch.save does not")
    if state.copied:
        raise _unsafe("sets attributes from one dict twice")
    state.copied = True


def _fits(opcode: str, function: str, arguments: tuple[object, ...]) -> bool:
    """Whether ``torch.save`` writes this call."""
    if opcode == "NEWOBJ":
        return function == _NAMESPACE and arguments == ()
    if function == _ORDERED_DICT:
        return arguments == ()
    match arguments:
        case (_Made("storage"), int(), tuple(size), tuple(stride), bool(), _Made()):
            whole = all(isinstance(n, int) for n in (*size, *stride))
            return function == _TENSOR and whole
        case (_Made("tensor"), bool(), _Made()):
            return function == _PARAMETER
        case _:
            return False
