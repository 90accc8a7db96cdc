"""Checkpoints written and read by TensorFlow itself. A program, so that the tests' own process never imports it.

    python make_checkpoint.py DIR

Writes DIR/{dtypes,sharded,many,partitioned,strings}/model.ckpt, each with what TensorFlow read back in `expected.npz`,
and reads DIR/ours/model.ckpt into DIR/ours/expected.npz.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf


def save(folder: Path, tensors: dict[str, tf.Tensor], shards: int = 1, slices: list[str] | None = None) -> None:
    """Save with the very operations that `tf.train.Saver` builds, the tensors dealt out to `shards` files."""
    folder.mkdir(parents=True)
    names = list(tensors)
    parts = []
    for shard in range(shards):
        mine = names[shard::shards]
        parts.append(str(folder / f"part{shard}"))
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=mine,
            shape_and_slices=slices or [""] * len(mine),
            tensors=[tensors[name] for name in mine],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(folder / "model.ckpt"))


def read_back(folder: Path) -> None:
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
    arrays = {}
    for name in reader.get_variable_to_shape_map():
        array = reader.get_tensor(name)
        # npz knows no bfloat16; its bits will do.
        arrays[name.replace("/", "|")] = array.view(np.uint16) if array.dtype == tf.bfloat16 else array
    np.savez(folder / "expected.npz", **arrays)


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((7, 5)).astype(np.float32)
    save(
        folder / "dtypes",
        {
            "float32": tf.constant(normal),
            "float16": tf.constant(normal, tf.float16),
            "bfloat16": tf.cast(normal, tf.bfloat16),
            "int32": tf.constant([[-(2**31), 2**31 - 1]], tf.int32),
            "int64": tf.constant([-(2**63), 2**63 - 1], tf.int64),
            "scalar": tf.constant(-1.5),
            "empty": tf.zeros([3, 0, 2]),
            "scope/ünïcode": tf.constant([1.0]),
        },
    )
    save(folder / "sharded", {f"v{i}": tf.constant(normal * i) for i in range(7)}, shards=3)
    letters = np.array(list("abcdefghij"))
    many = {f"model/h{i // 4}/{''.join(rng.choice(letters, 250))}": tf.fill([2], float(i)) for i in range(2500)}
    save(folder / "many", many)
    save(folder / "partitioned", {"big": tf.zeros([4, 4])}, slices=["8 4 0,4:-"])
    save(folder / "strings", {"words": tf.constant(["a", "b"])})
    for name in ("dtypes", "sharded", "many", "ours"):
        read_back(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
