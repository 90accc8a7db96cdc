"""Writing TensorFlow checkpoints without TensorFlow, one tensor in memory at a time; see `tf_checkpoint`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core.checkpoint.tf_checkpoint import (
    BUNDLE_VERSION,
    BYTES,
    DIM,
    DTYPES,
    ENTRY,
    FIXED32,
    FOOTER_BYTES,
    HEADER,
    MAGIC,
    SHAPE,
    VERSION,
    masked_crc32c,
)


def write_checkpoint(
    prefix: str | os.PathLike[str], tensors: Iterable[tuple[str, np.ndarray]], dtype: str | None = None
) -> None:
    """Write `PREFIX.index` and `PREFIX.data-00000-of-00001`.

    Args:
        prefix: the path without suffixes; its directory must exist.
        tensors: names and arrays (float32, float16, int32, or int64).
        dtype: "bfloat16" if all arrays are bits of bfloat16, which NumPy does not have.
    """
    numbers = {np.dtype(numpy_dtype): n for n, (name, numpy_dtype) in DTYPES.items() if name != "bfloat16"}
    number = next((n for n, (name, _) in DTYPES.items() if name == dtype), None)
    entries = {b"": message(HEADER, num_shards=1, version=message(VERSION, producer=BUNDLE_VERSION))}
    with Path(f"{prefix}.data-00000-of-00001").open("wb") as file:
        for name, array in tensors:
            little_endian = array.dtype.newbyteorder("<")
            data = np.ascontiguousarray(array, little_endian).reshape(-1).view(np.uint8)  # [bytes], not a copy
            entries[name.encode()] = entry(number or numbers[little_endian], array.shape, data, offset=file.tell())
            file.write(data.data)
    Path(f"{prefix}.index").write_bytes(table(entries))


def write_saver_files(folder: str | os.PathLike[str], prefix: str, tag: str) -> None:
    """Write the other files of `tf.train.Saver`: `checkpoint` and `PREFIX.meta`.

    The latter is a valid MetaGraphDef without a graph, which only TensorFlow could create. Restoring weights does not
    need it.

    Args:
        folder: of the checkpoint.
        prefix: the checkpoint's file name without suffixes.
        tag: origin of the checkpoint, for the MetaGraphDef.
    """
    meta = message({"meta_info_def": (1, BYTES)}, meta_info_def=message({"tags": (4, BYTES)}, tags=[tag.encode()]))
    Path(folder, f"{prefix}.meta").write_bytes(meta)
    state = [f'{key}: "{prefix}"\n' for key in ("model_checkpoint_path", "all_model_checkpoint_paths")]
    Path(folder, "checkpoint").write_text("".join(state), encoding="utf-8")


def entry(dtype: int, shape: Iterable[int], data: bytes | np.ndarray, **fields: int) -> bytes:
    """Return a BundleEntryProto for `data`; `fields` are `offset` and `shard_id`."""
    dims = [message(DIM, size=size) for size in shape]
    fields = {"size": len(data), "crc32c": masked_crc32c(data)} | fields
    return message(ENTRY, dtype=dtype, shape=message(SHAPE, dim=dims), **fields)


def table(entries: Mapping[bytes, bytes]) -> bytes:
    """Return a LevelDB table with one block of data."""
    data = with_trailer(block(sorted(entries.items())))
    # The key in the index may be any that is not smaller than the last one of its block.
    return table_of_blocks([(max(entries), data)])


def table_of_blocks(blocks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a LevelDB table of finished blocks, each with its last key."""
    out, index = b"", []
    for last_key, data in blocks:
        index.append((last_key, _handle(len(out), len(data))))
        out += data
    meta, index_block = with_trailer(block([])), with_trailer(block(index))
    footer = _handle(len(out), len(meta)) + _handle(len(out) + len(meta), len(index_block))
    return out + meta + index_block + footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")


def block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a block of sorted key-value pairs, with complete keys and one restart point."""
    entries = (varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    return b"".join(entries) + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def with_trailer(data: bytes, compression: int = 0) -> bytes:
    """Return a block with its compression type and checksum."""
    data += bytes([compression])
    return data + masked_crc32c(data).to_bytes(4, "little")


def _handle(offset: int, size_with_trailer: int) -> bytes:
    return varint(offset) + varint(size_with_trailer - 5)


def message(schema: dict[str, tuple[int, int]], **fields: int | bytes | list[bytes]) -> bytes:
    """Return a protobuf message; zeros are omitted, as in proto3."""
    out = b""
    for name, (number, wire) in schema.items():
        values: Any = fields.pop(name, None) or []  # of the type of `wire`
        for value in values if isinstance(values, list) else [values]:
            out += varint(number << 3 | wire)
            if wire == BYTES:
                out += varint(len(value)) + value
            else:
                out += value.to_bytes(4, "little") if wire == FIXED32 else varint(value)
    if fields:
        raise KeyError(f"no such fields: {sorted(fields)}")
    return out


def varint(value: int) -> bytes:
    """Return an integer as a varint: seven bits per byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
