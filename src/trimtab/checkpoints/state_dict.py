"""Read what the pickle of a torch.save file says about its tensors, without unpickling it.

A pickle is a program. This interpreter follows the few instructions that torch.save writes for a
state dict. It calls nothing: names of functions are looked up in a table of this module, whose
entries only take notes. The cost of an untrusted pickle is bounded by its length and its number of
instructions, which neither Python's unpickler nor torch's restricted one would guarantee.

Instructions: Python's `pickletools`. Arguments of each function: `torch/_utils.py`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_PICKLE_BYTES = 64 << 20
"""Longest pickle that is read: about 300,000 tensors."""

MAX_INSTRUCTIONS = 8_000_000
"""Most instructions that are followed; torch.save writes about 25 for a tensor."""

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
"""`torch.FloatStorage` and the like -> dtype; `UntypedStorage` has its dtype beside it."""

_STORAGE_CLASS = re.compile(r"torch(?:\.cuda)?\.(\w+)Storage|torch\.storage\.UntypedStorage")
_DTYPE = re.compile(r"torch\.((?:bool|b?float|complex|q?u?int|bits)[\dx]*(?:_\w+)?)")


class PickleError(Exception):
    """Why a pickle is not the plain state dict that is read, without the name of the file."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as the pickle describes it.

    Attributes:
        storage: Name of its record below `data/`.
        dtype: As torch writes it: `bfloat16`.
        offset: Elements of the storage before its first.
        shape: Its size in each dimension.
        strides: Elements from one entry to the next, in each dimension.
        odd: Why its values are not the plain bytes of the storage; empty if they are.
    """

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    odd: str = ""


@dataclass(frozen=True, slots=True)
class _Global:
    """A function or class by its name. It is never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A record of the file, and the dtype of its class; empty for `UntypedStorage`."""

    record: str
    dtype: str


def read_state_dict(pickle: bytes) -> Any:
    """Follow the instructions of a pickle.

    Returns:
        What it describes: a dict whose tensors are `PickledTensor`, if it is a state dict.

    Raises:
        PickleError: It asks for anything that a plain state dict does not need.
    """
    machine = _Machine()
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
            if number >= MAX_INSTRUCTIONS:
                raise PickleError(f"more than {MAX_INSTRUCTIONS} instructions")
            machine.follow(operation.name, argument)
        (value,) = machine.stack
    except PickleError:
        raise
    except Exception as error:  # a damaged or hostile pickle fails in any way
        raise PickleError(f"its pickle is damaged: {type(error).__name__}") from None
    return value


class _Machine:
    """The stack and the memo of a pickle. Nothing on it is hashed but strings and numbers."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self._pop(int(name[-1]))))
        elif name not in ("PROTO", "FRAME", "STOP"):
            instruction = _INSTRUCTIONS.get(name)
            if instruction is None:
                raise PickleError(f"its pickle has the instruction {name}")
            instruction(self, argument)

    def _pop(self, number: int) -> list[Any]:
        if number > len(self.stack):
            raise PickleError("its pickle takes more than there is")
        values = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return values

    def _pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self._below.pop()
        return values

    def _mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _tuple(self, _: Any) -> None:
        values = self._pop_mark()
        self.stack.append(tuple(values))

    def _append(self, _: Any) -> None:
        self._extend_list(self._pop(1))

    def _appends(self, _: Any) -> None:
        self._extend_list(self._pop_mark())

    def _extend_list(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleError("its pickle appends to what is no list")
        self.stack[-1].extend(values)

    def _set_item(self, _: Any) -> None:
        self._set(self._pop(2))

    def _set_items(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise PickleError("its pickle sets a key of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None)):  # hashing is not free
                raise PickleError(f"it has a key that is a {_kind(key)}")
            if key in target:
                raise PickleError(f"it has the key {_shown(key)} twice")
            target[key] = value

    def _build(self, _: Any) -> None:
        """Set attributes: of an OrderedDict, to which torch gives `_metadata` of no use here."""
        self._pop(1)
        if type(self.stack[-1]) is not dict:
            raise PickleError(f"its pickle sets attributes of a {_kind(self.stack[-1])}")

    def _global(self, argument: Any) -> None:
        self._push_global(*str(argument).rsplit(" ", 1))

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        if type(module) is not str or type(name) is not str:
            raise PickleError("its pickle asks for what is not named by strings")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        known = _Global(f"{'builtins' if module == '__builtin__' else module}.{name}")
        if (
            known.name not in _CALLS
            and known.name not in ("torch.Tensor", "torch.nn.parameter.Parameter")
            and not _STORAGE_CLASS.fullmatch(known.name)
            and not _DTYPE.fullmatch(known.name)
        ):
            raise PickleError(f"it asks for {_shown(known.name)}")
        self.stack.append(known)

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self.stack.append(_call(function, arguments))

    def _persistent(self, _: Any) -> None:
        """Refer to a storage: ("storage", its class, its record, its device, its length)."""
        (about,) = self._pop(1)
        _, kind, record, _, _ = about
        match = _STORAGE_CLASS.fullmatch(kind.name)
        if match is None or type(record) is not str:
            raise PickleError("its pickle refers to what is no storage")
        dtype = match[1] and _STORAGES.get(match[1], f"of {kind.name}")
        self.stack.append(_Storage(record, dtype or ""))


_LITERALS = frozenset(
    {
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "BUILD": _Machine._build,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BINPERSID": _Machine._persistent,
}


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not _Global or function.name not in _CALLS or type(arguments) is not tuple:
        raise PickleError(f"its pickle calls a {_kind(function)}")
    return _CALLS[function.name](*arguments)


def _tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> PickledTensor:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`; `metadata` says conjugated or negated."""
    return _checked(storage, storage.dtype, offset, shape, strides, metadata)


def _tensor_v3(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: Any,
    hooks: Any,
    dtype: _Global,
    metadata: Any = None,
) -> PickledTensor:
    """`_rebuild_tensor_v3`, for the dtypes that have no storage class."""
    match = _DTYPE.fullmatch(dtype.name)
    if match is None:
        raise PickleError("its pickle has a tensor without a dtype")
    return _checked(storage, match[1], offset, shape, strides, metadata)


def _checked(
    storage: _Storage, dtype: str, offset: Any, shape: Any, strides: Any, metadata: Any
) -> PickledTensor:
    sizes = (offset, *shape, *strides)
    if (
        type(storage) is not _Storage
        or not dtype
        or type(shape) is not tuple
        or type(strides) is not tuple
        or len(shape) != len(strides)
        or len(shape) > 64
        or not all(type(size) is int and 0 <= size < 2**63 for size in sizes)
    ):
        raise PickleError("its pickle has a tensor that cannot be")
    odd = "is conjugated or negated by torch" if metadata else ""
    return PickledTensor(storage.record, dtype, offset, shape, strides, odd)


def _parameter(tensor: Any, *unused: Any) -> Any:
    return tensor


def _with_attributes(function: Any, kind: Any, arguments: Any, *unused: Any) -> Any:
    """`_rebuild_from_type_v2`: a tensor with Python attributes, or of another class."""
    if function.name == "torch._tensor._rebuild_from_type_v2":
        raise PickleError("its pickle has a tensor in a tensor")
    if kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return _odd("is of another class than torch.Tensor")()
    return _call(function, arguments)


def _odd(why: str) -> Callable[..., PickledTensor]:
    return lambda *unused: PickledTensor("", "", 0, (), (), why)


_SPARSE = _odd("is sparse or quantised by torch")
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *items: {} if not items else _items(*items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_qtensor": _SPARSE,
    "torch._utils._rebuild_nested_tensor": _odd("is nested"),
    "torch._utils._rebuild_wrapper_subclass": _odd("is of another class than torch.Tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("is on the meta device, without values"),
    "torch.serialization._get_layout": lambda *unused: None,
    "torch.Size": lambda sizes=(): tuple(sizes) if type(sizes) in (tuple, list) else (),
}
"""What a pickle may call: functions of this module, which take notes and import nothing."""


def _items(pairs: Any) -> dict[str, Any]:
    """`OrderedDict([[key, value], …])`, as old versions of Python pickled it."""
    if type(pairs) is not list or not all(
        type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in pairs
    ):
        raise PickleError("its pickle has an OrderedDict of no pairs")
    return dict(pairs)


def _kind(value: Any) -> str:
    if isinstance(value, PickledTensor):
        return "tensor"
    return "function" if isinstance(value, _Global) else type(value).__name__


def _shown(value: Any) -> str:
    text = ascii(value)[1:-1] if isinstance(value, str) else f"of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
