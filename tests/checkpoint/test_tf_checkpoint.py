"""The reader against TensorFlow, and against every kind of damage."""

from __future__ import annotations

import contextlib
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2core.checkpoint import tf_checkpoint, tf_writer
from gpt2core.checkpoint.tf_checkpoint import CheckpointError, TFCheckpoint, masked_crc32c

OURS = {
    "model/wte": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model/h0/b": np.array([1, -2], np.float16),
    "step": np.array(2**40, np.int64),
    "ids": np.array([[1, 2, 3]], np.int32),
    "none": np.zeros((0, 3), np.float32),
}
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
FLOAT32, SNAPPY = 1, 1


@pytest.fixture(scope="module")
def by_tensorflow(tensorflow: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `make_checkpoint.py`."""
    folder = tmp_path_factory.mktemp("by_tensorflow")
    (folder / "ours").mkdir()
    tf_writer.write_checkpoint(folder / "ours" / "model.ckpt", OURS.items())
    tensorflow(Path(__file__).with_name("make_checkpoint.py"), folder)
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder with a sound checkpoint; most tests spoil it."""
    tf_writer.write_checkpoint(tmp_path / "model.ckpt", OURS.items())
    return tmp_path


def assert_same(checkpoint: TFCheckpoint, expected: dict[str, np.ndarray]) -> None:
    assert set(checkpoint) == set(expected)
    for name, array in expected.items():
        assert checkpoint[name].shape == array.shape
        assert checkpoint[name].dtype == array.dtype
        assert checkpoint[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["dtypes", "sharded", "many", "ours"])
def test_reads_what_tensorflow_reads(by_tensorflow: Path, kind: str) -> None:
    expected = np.load(by_tensorflow / kind / "expected.npz")
    checkpoint = TFCheckpoint(by_tensorflow / kind / "model.ckpt")
    assert_same(checkpoint, {name.replace("|", "/"): expected[name] for name in expected.files})


def test_the_written_cases_are_what_they_claim(by_tensorflow: Path) -> None:
    dtypes = {entry.dtype for entry in TFCheckpoint(by_tensorflow / "dtypes" / "model.ckpt").entries.values()}
    assert dtypes == {"float32", "float16", "bfloat16", "int32", "int64"}
    assert len(list((by_tensorflow / "sharded").glob("*-of-00003"))) == 3
    # TensorFlow's blocks end after 256 KiB: the table must have several.
    assert (by_tensorflow / "many" / INDEX).stat().st_size > 2 * 262_144


def test_bfloat16_comes_as_its_bits(by_tensorflow: Path) -> None:
    checkpoint = TFCheckpoint(by_tensorflow / "dtypes" / "model.ckpt")
    values = torch.from_numpy(checkpoint["bfloat16"].copy()).view(torch.bfloat16)
    torch.testing.assert_close(values, torch.from_numpy(checkpoint["float32"].copy()).bfloat16(), rtol=0, atol=0)


def test_our_writer_round_trips(ours: Path) -> None:
    assert_same(TFCheckpoint(ours / "model.ckpt"), OURS)


def test_a_tensor_is_a_read_only_view_of_the_file(ours: Path) -> None:
    array = TFCheckpoint(ours / "model.ckpt")["model/wte"]
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_unknown_name_is_a_key_error(ours: Path) -> None:
    checkpoint = TFCheckpoint(ours / "model.ckpt")
    assert "nothing" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["nothing"]


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, appendix B.4, and the check value of the CRC catalogues
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_masked_crc32c_is_rotated_by_15_plus_a_constant(data: bytes, crc: int) -> None:
    bits = f"{crc:032b}"
    assert masked_crc32c(data) == (int(bits[-15:] + bits[:-15], 2) + 0xA282EAD8) % 2**32


# --- errors, one by one ---


def test_partitioned_variables_are_refused(by_tensorflow: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index: tensor 'big': .*sliced"):
        TFCheckpoint(by_tensorflow / "partitioned" / "model.ckpt")


def test_strings_are_refused(by_tensorflow: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'words': unknown dtype 7; supported: float32"):
        TFCheckpoint(by_tensorflow / "strings" / "model.ckpt")


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index: no such file"):
        TFCheckpoint(tmp_path / "model.ckpt")


def test_index_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index: is a folder"):
        TFCheckpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("size", [0, 1, 47])
def test_index_too_short(ours: Path, size: int) -> None:
    (ours / INDEX).write_bytes((ours / INDEX).read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{size} bytes are too short"):
        TFCheckpoint(ours / "model.ckpt")


def test_index_truncated(ours: Path) -> None:
    (ours / INDEX).write_bytes((ours / INDEX).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="magic number"):
        TFCheckpoint(ours / "model.ckpt")


def test_index_block_beyond_the_end(ours: Path) -> None:
    (ours / INDEX).write_bytes((ours / INDEX).read_bytes()[-60:])
    with pytest.raises(CheckpointError, match="beyond the end"):
        TFCheckpoint(ours / "model.ckpt")


def test_index_bit_flip(ours: Path) -> None:
    flip(ours / INDEX, 40)
    with pytest.raises(CheckpointError, match="does not have its checksum"):
        TFCheckpoint(ours / "model.ckpt")


def test_data_missing(ours: Path) -> None:
    (ours / DATA).unlink()
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor 'ids': cannot be read \(No such file"):
        TFCheckpoint(ours / "model.ckpt")


def test_one_of_several_shards_missing(by_tensorflow: Path, tmp_path: Path) -> None:
    shutil.copytree(by_tensorflow / "sharded", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.ckpt.data-00001-of-00003").unlink()
    with pytest.raises(CheckpointError, match=r"data-00001-of-00003: tensor 'v1'"):
        TFCheckpoint(tmp_path / "model.ckpt")


def test_data_truncated(ours: Path) -> None:
    (ours / DATA).write_bytes((ours / DATA).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor 'ids': truncated, it ends at byte \d+ and the file at"):
        TFCheckpoint(ours / "model.ckpt")


def test_data_truncated_after_opening(ours: Path) -> None:
    checkpoint = TFCheckpoint(ours / "model.ckpt")
    (ours / DATA).write_bytes(b"")
    with pytest.raises(CheckpointError, match="'model/wte': damaged"):
        checkpoint["model/wte"]


def test_data_bit_flip_names_the_tensor(ours: Path) -> None:
    flip(ours / DATA, 50)  # the first 48 bytes are model/wte
    checkpoint = TFCheckpoint(ours / "model.ckpt")
    assert checkpoint["model/wte"].tobytes() == OURS["model/wte"].tobytes()
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor 'model/h0/b': damaged"):
        checkpoint.verify()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


HEADER = tf_writer.message(tf_checkpoint.HEADER, num_shards=1)
FOUR = b"\0\0\0\0"


def shape(*sizes: int, **fields: int) -> bytes:
    dims = [tf_writer.message(tf_checkpoint.DIM, size=size) for size in sizes]
    return tf_writer.message(tf_checkpoint.SHAPE, dim=dims, **fields)


def message(**fields: int | bytes) -> bytes:
    """A sound entry of one float32, but for `fields`."""
    sound = {"dtype": FLOAT32, "shape": shape(1), "size": 4, "crc32c": masked_crc32c(FOUR)}
    return tf_writer.message(tf_checkpoint.ENTRY, **(sound | fields))


def header(**fields: int | bytes) -> bytes:
    return tf_writer.message(tf_checkpoint.HEADER, **fields)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({b"x": message()}, "no header"),
        ({b"": header(num_shards=0)}, "0 data shards"),
        ({b"": header(num_shards=10**6)}, "1000000 data shards"),
        ({b"": header(num_shards=1, endianness=1)}, "big-endian"),
        (
            {b"": header(num_shards=1, version=tf_writer.message(tf_checkpoint.VERSION, min_consumer=2))},
            "format version 2",
        ),
        ({b"": HEADER, b"x": message(dtype=2)}, "'x': unknown dtype 2"),
        ({b"": HEADER, b"x": message(dtype=101)}, "'x': unknown dtype 101"),
        ({b"": HEADER, b"x": message(shard_id=1)}, "'x': data shard 1 does not exist; the checkpoint has 1"),
        ({b"": HEADER, b"x": message(shard_id=2**64 - 1)}, "'x': data shard 18446744073709551615 does not exist"),
        ({b"": HEADER, b"x": message(offset=1)}, "'x': truncated"),
        ({b"": HEADER, b"x": message(offset=2**63)}, "'x': truncated"),
        ({b"": HEADER, b"x": message(size=8)}, r"'x': float32 of shape \[1\] cannot have 8 bytes"),
        ({b"": HEADER, b"x": message(shape=shape(2))}, r"'x': float32 of shape \[2\] cannot have 4 bytes"),
        ({b"": HEADER, b"x": message(shape=shape(2**64 - 1))}, "'x': impossible shape"),
        ({b"": HEADER, b"x": message(shape=shape(0, 2**62), size=0)}, "'x': impossible shape"),
        ({b"": HEADER, b"x": message(shape=shape(*[1] * 65))}, "'x': impossible shape"),
        ({b"": HEADER, b"x": message(shape=shape(unknown_rank=1))}, "'x': has no shape"),
        ({b"": HEADER, b"x": message(slices=b"\x0a\x00")}, "'x': is part of a sliced"),
        ({b"": HEADER, b"\xff": message()}, "not UTF-8"),
        ({b"": HEADER, b"x": message() + b"\x08\x01"}, "'x': dtype is given 2 times"),
        ({b"": HEADER, b"x": message() + b"\x0d" + FOUR}, "'x': dtype has wire type 5"),
        ({b"": HEADER, b"x": message() + b"\x7b"}, "'x': field 15 has the unknown wire type 3"),
        ({b"": HEADER, b"x": message() + b"\x7a\x05a"}, "'x': 5 bytes announced, 1 there"),
        ({b"": HEADER, b"x": message() + b"\x78" + b"\xff" * 10}, "'x': a number is longer than 64 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_entries(tmp_path: Path, entries: dict[bytes, bytes], reason: str) -> None:
    (tmp_path / INDEX).write_bytes(tf_writer.table(entries))
    (tmp_path / DATA).write_bytes(FOUR)
    with pytest.raises(CheckpointError, match=reason):
        TFCheckpoint(tmp_path / "model.ckpt")


def test_the_sound_entry_is_sound_and_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    surplus = b"\x78\x01" + b"\x7a\x01a" + b"\x7d" + FOUR + b"\x79" + 2 * FOUR  # field 15 in all four wire types
    (tmp_path / INDEX).write_bytes(tf_writer.table({b"": HEADER, b"x": message() + surplus}))
    (tmp_path / DATA).write_bytes(FOUR)
    assert_same(TFCheckpoint(tmp_path / "model.ckpt"), {"x": np.zeros(1, np.float32)})


def one_block(pairs: bytes, compression: int = 0, restarts: int = 1) -> bytes:
    data = pairs + bytes(4 * min(restarts, 1)) + struct.pack("<I", restarts)
    return tf_writer.table_of_blocks([(b"~", tf_writer.with_trailer(data, compression))])


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (one_block(b"", compression=SNAPPY), "Snappy"),
        (one_block(b"", compression=9), "unknown compression 9"),
        (one_block(b"", restarts=1000), "cannot have 1000 restarts"),
        (one_block(b"\x01\x00\x00"), "takes 1 bytes from one of 0"),
        (one_block(b"\x00\xff\xff\x7f\x00"), "adds 2097151"),
        (one_block(b"\x00\x05\x00a"), "5 bytes announced, 1 there"),
        (one_block(b"\x00\x01\x05a"), "5 bytes announced, 0 there"),
        (one_block(b"\x00\x01\x00b\x00\x01\x00a"), "not in ascending order at b'a'"),
        (one_block(b"\x00\x01\x00a\x01\x00\x00"), "not in ascending order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_blocks(tmp_path: Path, index: bytes, reason: str) -> None:
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(CheckpointError, match=rf"model\.ckpt\.index: .*{reason}"):
        TFCheckpoint(tmp_path / "model.ckpt")


# --- files of two checkpoints ---


def test_data_of_another_checkpoint_of_the_same_shapes_is_refused(ours: Path) -> None:
    others = {name: array + np.ones_like(array) for name, array in OURS.items()}
    tf_writer.write_checkpoint(ours / "other", others.items())
    shutil.copyfile(ours / "other.data-00000-of-00001", ours / DATA)
    with pytest.raises(CheckpointError, match=rf"{DATA}: tensor '.*': damaged"):
        TFCheckpoint(ours / "model.ckpt").verify()
    shutil.copyfile(ours / "other.index", ours / INDEX)  # a pair again
    assert_same(TFCheckpoint(ours / "model.ckpt"), others)


def test_swapped_shards_are_refused(by_tensorflow: Path, tmp_path: Path) -> None:
    for path in (by_tensorflow / "sharded").glob("model.ckpt.*"):
        shutil.copyfile(path, tmp_path / path.name)
    first, second = (tmp_path / f"model.ckpt.data-0000{i}-of-00003" for i in (1, 2))
    assert first.stat().st_size == second.stat().st_size
    data = first.read_bytes()
    shutil.copyfile(second, first)
    second.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"data-00001-of-00003: tensor 'v1': damaged"):
        TFCheckpoint(tmp_path / "model.ckpt").verify()


# --- anything at all ---

OPERATIONS = st.sampled_from(["flip", "cut", "insert", "delete", "overwrite", "double", "swap"])
MAX_ALLOCATED_BYTES = 1 << 20  # the files have a few kilobytes


def mutate(data: bytes, operation: str, position: int, junk: bytes, other: int = 0) -> bytes:
    """One change at a position; `junk` is what is put there, and its length how much is taken; `swap` has two."""
    at = position % (len(data) + 1)
    if operation == "flip":
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (junk[0] or 1)]) + data[at + 1 :]
    if operation == "swap":
        size = len(junk)
        first, second = sorted((at, other % (len(data) + 1)))
        second = max(second, first + size)
        return (
            data[:first]
            + data[second : second + size]
            + data[first + size : second]
            + data[first : first + size]
            + data[second + size :]
        )
    return {
        "cut": data[:at],
        "insert": data[:at] + junk + data[at:],
        "delete": data[:at] + data[at + len(junk) :],
        "overwrite": data[:at] + junk + data[at + len(junk) :],
        "double": data[:at] + data,
    }[operation]


@contextlib.contextmanager
def no_huge_allocation() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED_BYTES
    finally:
        tracemalloc.stop()


fuzz = settings(
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes the folder anew
)


@fuzz
@given(
    kind=st.sampled_from(["dtypes", "sharded"]),
    file=st.integers(0, 3),
    operation=OPERATIONS,
    position=st.integers(0, 2000),
    other=st.integers(0, 2000),
    junk=st.binary(min_size=1, max_size=12),
)
def test_a_mutated_file_gives_the_right_bytes_or_an_error(
    by_tensorflow: Path, tmp_path: Path, kind: str, file: int, operation: str, position: int, other: int, junk: bytes
) -> None:
    source = by_tensorflow / kind
    names = sorted(path.name for path in source.glob("model.ckpt.*"))
    for name in names:
        shutil.copyfile(source / name, tmp_path / name)
    spoilt = tmp_path / names[-1 - file % len(names)]
    spoilt.write_bytes(mutate(spoilt.read_bytes(), operation, position, junk, other))
    with no_huge_allocation():
        try:
            found = dict(TFCheckpoint(tmp_path / "model.ckpt"))
        except CheckpointError:
            return
    assert_same(found, dict(TFCheckpoint(source / "model.ckpt")))


@fuzz
@given(
    operation=OPERATIONS,
    position=st.integers(0, 2000),
    other=st.integers(0, 2000),
    junk=st.one_of(
        st.binary(min_size=1, max_size=12), st.integers(0, 2**70).map(tf_writer.varint), st.just(b"\xff" * 9)
    ),
)
def test_nonsense_with_right_checksums_is_read_or_refused(
    by_tensorflow: Path, tmp_path: Path, operation: str, position: int, other: int, junk: bytes
) -> None:
    """Beyond what the checksums catch, the parsers must stand on their own: no other exception, no endless loop."""
    source = by_tensorflow / "dtypes"
    shutil.copyfile(source / DATA, tmp_path / DATA)
    index = (source / INDEX).read_bytes()
    # The first block ends where the empty meta block begins, which the footer gives first.
    end = tf_checkpoint._Reader(index[-tf_checkpoint.FOOTER_BYTES :]).varint() - tf_checkpoint.TRAILER_BYTES
    block = mutate(index[:end], operation, position % end, junk, other % end)
    (tmp_path / INDEX).write_bytes(tf_writer.table_of_blocks([(b"~", tf_writer.with_trailer(block))]))
    with no_huge_allocation():
        try:
            TFCheckpoint(tmp_path / "model.ckpt").verify()
        except CheckpointError as error:
            assert str(tmp_path) in str(error)


@fuzz
@given(data=st.binary(max_size=300), block=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, block: bytes) -> None:
    (tmp_path / INDEX).write_bytes(tf_writer.table_of_blocks([(b"~", tf_writer.with_trailer(block))]))
    (tmp_path / DATA).write_bytes(data)
    with no_huge_allocation(), contextlib.suppress(CheckpointError):
        TFCheckpoint(tmp_path / "model.ckpt").verify()
