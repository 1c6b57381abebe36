"""A CD-ROM image with a label and a few small files: what a NoCloud seed is read from.

ISO 9660 with Joliet names, since "user-data" is no name to plain ISO 9660.  Everything has a fixed
place: descriptors, path tables, one directory for each of the two kinds of names, the files.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

SECTOR = 2048
_FIRST = 16  # sectors that belong to nobody
_PRIMARY_TABLES, _JOLIET_TABLES = 19, 21  # each a little-endian one, then a big-endian one
_PRIMARY_DIRECTORY, _JOLIET_DIRECTORY = 23, 24
_FILES = 25

_JOLIET = b"%/E"  # the escape sequence of UCS-2, level 3


def image(label: str, files: Mapping[str, bytes]) -> bytes:
    """The image.  Names of files: ASCII; all of them have to fit into one sector."""
    placed: dict[str, _Extent] = {}
    end = _FILES
    for name, content in sorted(files.items()):
        placed[name] = _Extent(end, len(content))
        end += -(-len(content) // SECTOR)
    sectors = [
        *[b""] * _FIRST,
        _descriptor(1, label.encode(), end, _PRIMARY_TABLES, _PRIMARY_DIRECTORY),
        _descriptor(2, label.encode("utf-16-be"), end, _JOLIET_TABLES, _JOLIET_DIRECTORY),
        b"\xffCD001\x01",
        *_path_tables(_PRIMARY_DIRECTORY),
        *_path_tables(_JOLIET_DIRECTORY),
        _directory(_PRIMARY_DIRECTORY, {_plain(name): extent for name, extent in placed.items()}),
        _directory(
            _JOLIET_DIRECTORY,
            {name.encode("utf-16-be"): extent for name, extent in placed.items()},
        ),
    ]
    whole = b"".join(sector.ljust(SECTOR, b"\0") for sector in sectors)
    for name in placed:
        whole += files[name].ljust(-(-len(files[name]) // SECTOR) * SECTOR, b"\0")
    return whole


class _Extent(NamedTuple):
    sector: int
    size: int


def _descriptor(kind: int, label: bytes, sectors: int, tables: int, directory: int) -> bytes:
    blank = b" " if kind == 1 else b"\0 "
    fields = [
        struct.pack("B5sBx", kind, b"CD001", 1),
        _text(b"", 32, blank),
        _text(label, 32, blank),
        bytes(8),
        _both(sectors),
        (b"" if kind == 1 else _JOLIET).ljust(32, b"\0"),
        _both_short(1) * 2,  # the first of one disk
        _both_short(SECTOR),
        _both(len(_path_table("<", directory))),
        struct.pack("<II", tables, 0),
        struct.pack(">II", tables + 1, 0),
        _record(b"\0", _Extent(directory, SECTOR), directory=True),
        _text(b"", 4 * 128 + 3 * 37, blank),
        (b"0" * 16 + b"\0") * 4,  # no dates
        b"\x01",
    ]
    return b"".join(fields)


def _path_tables(directory: int) -> list[bytes]:
    return [_path_table("<", directory), _path_table(">", directory)]


def _path_table(order: str, directory: int) -> bytes:
    return struct.pack(f"{order}BBIHBx", 1, 0, directory, 1, 0)


def _directory(sector: int, entries: Mapping[bytes, _Extent]) -> bytes:
    itself = _Extent(sector, SECTOR)
    records = [_record(b"\0", itself, directory=True), _record(b"\1", itself, directory=True)]
    records += [_record(name, entries[name]) for name in sorted(entries)]
    content = b"".join(records)
    assert len(content) <= SECTOR, "too many files"
    return content


def _record(name: bytes, extent: _Extent, *, directory: bool = False) -> bytes:
    length = 33 + len(name) + (len(name) + 1) % 2
    return b"".join([
        struct.pack("BB", length, 0),
        _both(extent.sector),
        _both(extent.size),
        bytes(7),  # no date
        struct.pack("BBB", 2 if directory else 0, 0, 0),
        _both_short(1),
        struct.pack("B", len(name)),
        name,
    ]).ljust(length, b"\0")  # fmt: skip


def _plain(name: str) -> bytes:
    return "".join(c if c.isalnum() else "_" for c in name.upper()).encode() + b".;1"


def _text(text: bytes, size: int, blank: bytes) -> bytes:
    return (text + blank * size)[:size]


def _both(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both_short(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)
