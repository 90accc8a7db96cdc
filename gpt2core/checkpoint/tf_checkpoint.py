"""TensorFlow checkpoints without TensorFlow: the TensorBundle format ("V2"), memory-mapped, every byte checked.

`PREFIX.index` is a LevelDB table: sorted key-value pairs in blocks, each with a CRC-32C. Its footer contains the
position of the index of the blocks. The value of the key "" is a BundleHeaderProto. Every other key is the name of a
tensor, and its value is a BundleEntryProto: the dtype, the shape, and the position of the tensor's raw bytes in
`PREFIX.data-SSSSS-of-NNNNN`, with their CRC-32C.

Sources: LevelDB, doc/table_format.md; TensorFlow, core/protobuf/tensor_bundle.proto and core/util/tensor_bundle/.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gpt2core import files
from gpt2core.errors import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48  # two block handles, padded to 40 bytes, and the magic number
TRAILER_BYTES = 5  # after each block: its type, and the masked CRC-32C of block and type
MAX_INDEX_BYTES = 64 << 20  # GPT-2 1558M's has 16 KB
MAX_KEY_BYTES = 4096  # far beyond any variable's name; keeps a forged table from growing its keys without end
MAX_SHARDS = 99_999  # five digits in the file name
MAX_DIMENSIONS = 64  # NumPy's
BUNDLE_VERSION = 1  # of the readers that this one equals

# TensorFlow's DataType (core/framework/types.proto): its name, and the NumPy type of its bytes in the file.
DTYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "<f4"),
    3: ("int32", "<i4"),
    9: ("int64", "<i8"),
    14: ("bfloat16", "<u2"),  # NumPy has none
    19: ("float16", "<f2"),
}
NUMPY_DTYPES = dict(DTYPES.values())


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of an unsupported format. The message names file, tensor, and reason."""


class _Damaged(ValueError):
    """The reason why a file is damaged, without its name; a caller that knows the file raises CheckpointError."""


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Return the CRC-32C as LevelDB stores it: rotated right by 15 bits, plus a constant.

    The CRC of data that contains a plain CRC would be weak.

    >>> hex(masked_crc32c(b""))
    '0xa282ead8'
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True)
class TensorEntry:
    """The index entry of a tensor: its bytes are [offset_bytes, offset_bytes + size_bytes) of a data shard."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset_bytes: int
    size_bytes: int
    crc32c: int


class TFCheckpoint(Mapping[str, np.ndarray]):
    """A checkpoint as a mapping from a tensor's name to its values.

    Opening reads the index and compares it with the sizes of the data shards. `checkpoint[name]` maps the tensor into
    memory, checks its CRC-32C, and returns a read-only array; nothing is copied. bfloat16 is returned as uint16 bits.

    Args:
        prefix: the path up to `.index`, such as `data/openai/124M/model.ckpt`.

    Raises:
        CheckpointError: on opening, or when a damaged tensor is read.
    """

    def __init__(self, prefix: str | os.PathLike[str]):
        self.prefix = Path(prefix)
        self.index_path = Path(f"{prefix}.index")
        self._shards: dict[int, np.ndarray] = {}
        try:
            table = _read_table(files.read_bytes(self.index_path, MAX_INDEX_BYTES))
            if (header := table.pop(b"", None)) is None:
                raise _Damaged("has no header; not a TensorFlow checkpoint")
            self._n_shards = _parse_header(header)
        except UserError as error:
            raise CheckpointError(str(error)) from None
        except _Damaged as error:
            raise CheckpointError(f"{self.index_path}: {error}") from None
        self.entries: dict[str, TensorEntry] = {}
        for key, value in table.items():
            # The key of a part of a sliced variable is "\0NAME\0…". Its name is for the error message.
            name_bytes = key.split(b"\0")[1] if key.startswith(b"\0") else key
            name = name_bytes.decode("utf-8", errors="backslashreplace")
            try:
                self.entries[name] = _parse_entry(key, value, self._n_shards)
            except _Damaged as error:
                raise CheckpointError(f"{self.index_path}: tensor {name!r}: {error}") from None
        self._check_sizes()

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        end = entry.offset_bytes + entry.size_bytes
        data = self._shard(entry.shard)[entry.offset_bytes : end]
        # Check the size again: the file may have been truncated after it was opened.
        if len(data) != entry.size_bytes or masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(
                f"{self.shard_path(entry.shard)}: tensor {name!r}: damaged, bytes {entry.offset_bytes} to {end} do not "
                "have the checksum (CRC-32C) that the index gives; fetch the file again"
            )
        return data.view(NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def verify(self) -> None:
        """Check the CRC-32C of every tensor. Raises CheckpointError at the first that is damaged."""
        for name in self:
            self[name]

    def shard_path(self, shard: int) -> Path:
        """Return the data file of a shard, counted from 0."""
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self._n_shards:05d}")

    def _check_sizes(self) -> None:
        size_bytes: dict[int, int] = {}
        for name, entry in self.entries.items():
            path = self.shard_path(entry.shard)
            try:
                if entry.shard not in size_bytes:
                    size_bytes[entry.shard] = path.stat().st_size
            except OSError as error:
                raise CheckpointError(f"{path}: tensor {name!r}: cannot be read ({error.strerror})") from None
            end = entry.offset_bytes + entry.size_bytes
            if end > size_bytes[entry.shard]:
                raise CheckpointError(
                    f"{path}: tensor {name!r}: truncated, it ends at byte {end} and the file at "
                    f"{size_bytes[entry.shard]}; fetch the file again"
                )

    def _shard(self, shard: int) -> np.ndarray:
        """Return a data shard's bytes, read-only [size] uint8; the map lives as long as an array that refers to it."""
        if shard not in self._shards:
            path = self.shard_path(shard)
            try:
                with path.open("rb") as file:
                    empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
                    data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
            self._shards[shard] = np.frombuffer(data, np.uint8)
        return self._shards[shard]


# --- LevelDB's table ---


def _read_table(data: bytes) -> dict[bytes, bytes]:
    if len(data) < FOOTER_BYTES:
        raise _Damaged(f"{len(data)} bytes are too short for an index; truncated or no TensorFlow checkpoint")
    if int.from_bytes(data[-8:], "little") != MAGIC:
        raise _Damaged("does not end in LevelDB's magic number; truncated or no TensorFlow checkpoint")
    footer = _Reader(data[-FOOTER_BYTES:-8])
    meta, index = _read_handle(footer), _read_handle(footer)
    _read_block(data, *meta)  # empty in checkpoints, but its checksum must be right like all others
    table: dict[bytes, bytes] = {}
    last = None
    for _, value in _pairs(_read_block(data, *index)):
        handle = _Reader(value)
        block = _read_block(data, *_read_handle(handle))
        if handle.left():
            raise _Damaged("a block's address has surplus bytes")
        for key, entry in _pairs(block):
            if last is not None and key <= last:
                raise _Damaged(f"keys are not in ascending order at {key!r}")
            table[key] = entry
            last = key
    return table


def _read_handle(reader: _Reader) -> tuple[int, int]:
    return reader.varint(), reader.varint()


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """Return the block at [offset, offset + size) after checking its checksum."""
    end = offset + size
    if end + TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise _Damaged(f"block at {offset} of {size} bytes is beyond the end of the file; truncated or damaged")
    stored = int.from_bytes(data[end + 1 : end + TRAILER_BYTES], "little")
    if masked_crc32c(data[offset : end + 1]) != stored:
        raise _Damaged(f"damaged, block at {offset} of {size} bytes does not have its checksum; fetch the file again")
    if data[end] == 1:
        raise _Damaged(f"block at {offset} is compressed with Snappy, which is not supported")
    if data[end] != 0:
        raise _Damaged(f"block at {offset} has the unknown compression {data[end]}")
    return data[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key-value pairs of a block, in which each key shares a prefix with the key before it."""
    n_restarts = int.from_bytes(block[-4:], "little")  # offsets of whole keys, for a binary search
    end = len(block) - 4 * (n_restarts + 1)
    if end < 0:
        raise _Damaged(f"block of {len(block)} bytes cannot have {n_restarts} restarts")
    reader = _Reader(block[:end])
    key = b""
    while reader.left():
        shared, unshared, value_size = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key) or shared + unshared > MAX_KEY_BYTES:
            raise _Damaged(f"a key takes {shared} bytes from one of {len(key)} and adds {unshared}")
        key = key[:shared] + reader.take(unshared)
        yield key, reader.take(value_size)


class _Reader:
    """A cursor over bytes that checks for their end."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def left(self) -> int:
        """Return the number of bytes after the cursor."""
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.left():
            raise _Damaged(f"{count} bytes announced, {self.left()} there")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        """Return the next integer: seven bits per byte, the lowest first; the high bit says that more follow."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 1 << 64:
                return value
        raise _Damaged("a number is longer than 64 bits")


# --- the protobuf messages ---

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
HEADER = {"num_shards": (1, VARINT), "endianness": (2, VARINT), "version": (3, BYTES)}
VERSION = {"producer": (1, VARINT), "min_consumer": (2, VARINT)}
ENTRY = {
    "dtype": (1, VARINT),
    "shape": (2, BYTES),
    "shard_id": (3, VARINT),
    "offset": (4, VARINT),
    "size": (5, VARINT),
    "crc32c": (6, FIXED32),
    "slices": (7, BYTES),
}
SHAPE = {"dim": (2, BYTES), "unknown_rank": (3, VARINT)}
DIM = {"size": (1, VARINT)}


class _Message:
    """A protobuf message by field name. Fields that are not in the schema are ignored; absent numbers are zero."""

    def __init__(self, data: bytes, schema: dict[str, tuple[int, int]]):
        by_number = {number: (name, wire) for name, (number, wire) in schema.items()}
        self.fields: dict[str, list[Any]] = {name: [] for name in schema}
        reader = _Reader(data)
        while reader.left():
            number, wire = divmod(reader.varint(), 8)
            if wire == VARINT:
                value: int | bytes = reader.varint()
            elif wire == FIXED32:
                value = int.from_bytes(reader.take(4), "little")
            elif wire == FIXED64:
                value = reader.take(8)
            elif wire == BYTES:
                value = reader.take(reader.varint())
            else:
                raise _Damaged(f"field {number} has the unknown wire type {wire}")
            if number not in by_number:
                continue
            name, expected_wire = by_number[number]
            if wire != expected_wire:
                raise _Damaged(f"{name} has wire type {wire}, must have {expected_wire}")
            self.fields[name].append(value)

    def many(self, name: str) -> list[Any]:
        """Return all values of a repeated field."""
        return self.fields[name]

    def number(self, name: str) -> int:
        """Return the value of an integer field."""
        return self._one(name, 0)

    def bytes(self, name: str) -> bytes:
        """Return the value of a field of bytes."""
        return self._one(name, b"")

    def _one(self, name: str, default: Any) -> Any:
        if len(self.fields[name]) > 1:
            raise _Damaged(f"{name} is given {len(self.fields[name])} times")
        return self.fields[name][0] if self.fields[name] else default


def _parse_header(data: bytes) -> int:
    """Return the number of data shards."""
    header = _Message(data, HEADER)
    if header.number("endianness") != 0:
        raise _Damaged("was written on a big-endian machine, which is not supported")
    min_consumer = _Message(header.bytes("version"), VERSION).number("min_consumer")
    if min_consumer > BUNDLE_VERSION:
        raise _Damaged(f"has format version {min_consumer}, newer than the supported {BUNDLE_VERSION}")
    n_shards = header.number("num_shards")
    if not 1 <= n_shards <= MAX_SHARDS:
        raise _Damaged(f"{n_shards} data shards, must be 1 to {MAX_SHARDS}")
    return n_shards


def _parse_entry(key: bytes, data: bytes, n_shards: int) -> TensorEntry:
    entry = _Message(data, ENTRY)
    if key.startswith(b"\0") or entry.many("slices"):
        raise _Damaged("is part of a sliced (partitioned) variable, which is not supported")
    try:
        key.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged("the name is not UTF-8") from None
    if entry.number("dtype") not in DTYPES:
        supported = ", ".join(f"{name} ({number})" for number, (name, _) in DTYPES.items())
        raise _Damaged(f"unknown dtype {entry.number('dtype')}; supported: {supported}")
    dtype, numpy_dtype = DTYPES[entry.number("dtype")]

    shape_message = _Message(entry.bytes("shape"), SHAPE)
    if shape_message.number("unknown_rank"):
        raise _Damaged("has no shape")
    shape = tuple(_Message(dim, DIM).number("size") for dim in shape_message.many("dim"))
    itemsize = np.dtype(numpy_dtype).itemsize
    # Without zeros, as NumPy multiplies; this also refuses negative sizes, which are near 2**64 here.
    if len(shape) > MAX_DIMENSIONS or math.prod(max(dim, 1) for dim in shape) * itemsize >= 1 << 63:
        raise _Damaged(f"impossible shape {list(shape)}")
    size_bytes = entry.number("size")
    if math.prod(shape) * itemsize != size_bytes:
        raise _Damaged(f"{dtype} of shape {list(shape)} cannot have {size_bytes} bytes")
    shard, offset_bytes = entry.number("shard_id"), entry.number("offset")
    if shard >= n_shards:
        raise _Damaged(f"data shard {shard} does not exist; the checkpoint has {n_shards}, numbered from 0")
    return TensorEntry(dtype, shape, shard, offset_bytes, size_bytes, entry.number("crc32c"))
