"""libfuse's loop, and the functions of C, made of Python's, by which it calls the handlers.

The bindings would make them by ctypes, which has no answer for a call that doesn't reach Python: where there is no memory even for the
arguments, C gets what lies in the place of the result, and a program a file that ends too early. cffi puts an error there. It also keeps
what the interpreter knows of a thread for as long as the thread lives, which takes memory and time at each call otherwise.

Where memory that can be both written and run is forbidden, which cffi needs, ctypes makes them after all.

Rules: the bindings' own tables say which operations there are, and with which arguments; pointers arrive as numbers, 0 for NULL.
"""

import ctypes
import errno
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import cffi

logger = logging.getLogger(__name__)

Callback = Callable[..., int | None]

_UNANSWERED = -errno.ENOMEM
"""What C gets from a function that Python couldn't be entered for; nothing but memory has been seen to be missing."""

_SIGNED = (ctypes.c_int, ctypes.c_long, ctypes.c_longlong, ctypes.c_short, ctypes.c_byte)
_UNSIGNED = (ctypes.c_uint, ctypes.c_ulong, ctypes.c_ulonglong, ctypes.c_ushort, ctypes.c_ubyte)

_ffi = cffi.FFI()


def serve(main: Any, table: ctypes.Structure, functions: Mapping[str, Callback], mountpoint: str, options: Mapping[str, object]) -> None:
    """Mount, and return when it has been unmounted.

    Args:
        main: libfuse's `fuse_main_real`.
        table: the binding's `struct fuse_operations`; what isn't among `functions` stays as it is.
        functions: what libfuse may call, by its names.
        mountpoint: a folder.
        options: libfuse's and the kernel's; True stands for one without a value, False for none.

    Raises:
        RuntimeError: libfuse refuses; it has written why to the standard error.

    """
    made = fill(table, functions)
    joined = ",".join(name if value is True else f"{name}={value}" for name, value in options.items() if value is not False)
    words = [b"optfs", b"-f", b"-o", joined.encode(), os.fsencode(mountpoint)]
    status = main(len(words), (ctypes.c_char_p * len(words))(*words), ctypes.byref(table), ctypes.sizeof(table), None)
    del made  # only now: C's functions exist as long as these
    if status:
        raise RuntimeError(f"libfuse ends with {status}")


def fill(table: ctypes.Structure, functions: Mapping[str, Callback]) -> list[object]:
    """Put functions into a structure of pointers to functions, by the names of its fields, and return what must be kept as long as it is used."""
    made: list[object] = []
    fields: Any = type(table)._fields_
    for name, prototype, *_ in fields:
        if name in functions:
            try:
                function, address = _by_cffi(prototype, functions[name])
            except MemoryError:
                logger.info("memory that can be written and run is forbidden here; without any memory, answers to programs may be wrong")
                function, address = _by_ctypes(prototype, functions[name])
            made.append(function)
            setattr(table, name, prototype(address))
    return made


def _by_cffi(prototype: Any, function: Callback) -> tuple[object, int]:
    """Return a function of C and its address; MemoryError where systemd's MemoryDenyWriteExecute or SELinux forbids what cffi does."""
    error = _UNANSWERED if prototype._restype_ in _SIGNED else 0  # a pointer, which `init` alone returns, and libfuse doesn't look at
    made: Any = _ffi.callback(declaration(prototype), function, error=error, onerror=_say_nothing)
    return made, int(_ffi.cast("uintptr_t", made))


def _by_ctypes(prototype: Any, function: Callback) -> tuple[object, int]:
    """Return the same, made by ctypes: less sure, but allowed everywhere."""
    plain = [argument if _is_number(argument) else ctypes.c_void_p for argument in prototype._argtypes_]
    made = ctypes.CFUNCTYPE(prototype._restype_, *plain)(lambda *arguments: function(*[argument or 0 for argument in arguments]))
    return made, ctypes.cast(made, ctypes.c_void_p).value or 0


def declaration(prototype: Any) -> str:
    """Return a ctypes prototype in C, with numbers for pointers."""
    arguments = ", ".join(_type(argument) for argument in prototype._argtypes_)
    return f"{_type(prototype._restype_)}({arguments})"


def _is_number(ctype: Any) -> bool:
    return ctype in _SIGNED or ctype in _UNSIGNED


def _type(ctype: Any) -> str:
    for prefix, kinds in (("", _SIGNED), ("u", _UNSIGNED)):
        if ctype in kinds:
            return f"{prefix}int{ctypes.sizeof(ctype) * 8}_t"
    assert ctypes.sizeof(ctype) == ctypes.sizeof(ctypes.c_void_p), ctype
    return "uintptr_t"


def _say_nothing(*_error: object) -> None:
    """Handlers report what fails in them; what fails before them is want of memory, which a report would take, too."""
