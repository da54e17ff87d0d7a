"""Functions of C made of Python's: what arrives in them, and what C gets of one that gives no answer."""

import ctypes
import errno
from typing import NoReturn

import pytest

from optfs.bridge import callbacks


def test_a_table_has_functions_where_there_are_handlers() -> None:
    """By the names of its fields; flags and operations that aren't offered stay as they were."""

    class Table(ctypes.Structure):
        _fields_ = (
            ("read", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)),
            ("write", ctypes.CFUNCTYPE(ctypes.c_int)),
            ("flag", ctypes.c_uint, 1),
        )

    table = Table()
    seen: list[tuple[int, ...]] = []
    made = callbacks.fill(table, {"read": lambda *arguments: seen.append(arguments) or 7})  # type: ignore[func-returns-value]  # as append does
    assert (table.read(None, 2**47, 2**63, -(2**40)), len(made)) == (7, 1)
    assert seen == [(0, 2**47, 2**63, -(2**40))]
    assert not table.write
    assert table.flag == 0


@pytest.mark.parametrize("answer", [None, "text", 2**40], ids=str)
def test_c_gets_an_error_from_a_function_that_gives_no_answer(answer: object) -> None:
    """As where Python can't even be entered, for want of memory: ctypes would let C have what lies in the place of the result."""

    class Table(ctypes.Structure):
        _fields_ = (("read", ctypes.CFUNCTYPE(ctypes.c_int)),)

    def raises() -> int:
        raise MemoryError

    for function in (lambda: answer, raises):
        table = Table()
        made = callbacks.fill(table, {"read": function})  # type: ignore[dict-item]  # a wrong answer is the test
        assert table.read() == -errno.ENOMEM
        del made


def test_where_memory_that_can_be_run_is_forbidden_ctypes_makes_the_functions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same arguments: numbers for pointers, 0 for NULL."""

    class Table(ctypes.Structure):
        _fields_ = (("read", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)),)

    def forbidden(*_arguments: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(callbacks, "_by_cffi", forbidden)
    seen: list[tuple[int, ...]] = []
    table = Table()
    with caplog.at_level("INFO", "optfs.bridge.callbacks"):
        made = callbacks.fill(table, {"read": lambda *arguments: seen.append(arguments) or 7})  # type: ignore[func-returns-value]  # as above
    text = ctypes.create_string_buffer(b"x")
    assert (table.read(None, 2**47, 5), len(made)) == (7, 1)
    assert table.read(ctypes.cast(text, ctypes.c_char_p), 0, 6) == 7
    assert seen == [(0, 2**47, 5), (ctypes.addressof(text), 0, 6)]
    assert "forbidden here" in caplog.text


def test_declarations_have_the_widths_of_the_bindings_types() -> None:
    """Pointers are numbers, also those to functions and to structures."""
    inner = ctypes.CFUNCTYPE(ctypes.c_int)
    made = ctypes.CFUNCTYPE(
        ctypes.c_longlong, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), inner, ctypes.c_uint, ctypes.c_uint64, ctypes.c_short
    )
    assert callbacks.declaration(made) == "int64_t(uintptr_t, uintptr_t, uintptr_t, uint32_t, uint64_t, int16_t)"
    assert callbacks.declaration(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)) == "uintptr_t(uintptr_t)"
