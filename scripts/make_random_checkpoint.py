"""Write a checkpoint in OpenAI's format with random weights, to try the conversion without the network.

    python scripts/make_random_checkpoint.py 124M OUT_DIR [--bpe DIR] [--seed N] [--width C]

The seven files have OpenAI's names, sizes, and shapes; 124M takes 0.5 GB on disk and 0.4 GB of memory. With --width,
the depth, the heads, and the vocabulary are OpenAI's, and the hidden size is C. Without --bpe, the vocabulary is
generated, too. Needs no TensorFlow. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2core import files
from gpt2core.checkpoint.names import Row, table
from gpt2core.checkpoint.openai import CHECKPOINT_PREFIX, write_bpe, write_hparams
from gpt2core.checkpoint.tf_writer import write_checkpoint, write_saver_files
from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.runtime import stage_main
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.byte_pair import printable_bytes

VOCAB_SIZE = 50_257  # 256 bytes, 50,000 merges, <|endoftext|>


def make(config: GPTConfig, out_dir: Path, bpe_dir: Path | None = None, seed: int = 0) -> None:
    """Write OpenAI's seven files for a model of these sizes; an existing directory is replaced.

    Without `bpe_dir`, which contains `encoder.json` and `vocab.bpe`, the merges are all pairs of bytes in order.
    """
    with files.atomic_dir(out_dir) as folder:
        rng = np.random.Generator(np.random.PCG64(seed))
        write_checkpoint(folder / CHECKPOINT_PREFIX, _random_tensors(table(config), rng))
        write_saver_files(folder, CHECKPOINT_PREFIX, tag="random")
        write_hparams(folder / "hparams.json", config)
        if bpe_dir:
            for name in ("encoder.json", "vocab.bpe"):
                try:
                    shutil.copyfile(bpe_dir / name, folder / name)
                except OSError as error:
                    raise UserError(f"{bpe_dir / name}: cannot be read ({error.strerror})") from None
        else:
            _write_made_up_bpe(folder, config.vocab_size)


def _random_tensors(rows: list[Row], rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield tensors at GPT-2's initial scale: uniform, since normal draws need `log`, whose bits differ by machine."""
    half_width = np.float32(0.02 * math.sqrt(3))  # of a uniform distribution with standard deviation 0.02
    for row in rows:
        array = rng.random(row.openai_shape, dtype=np.float32)
        array -= np.float32(0.5)
        array *= 2 * half_width
        if row.openai.endswith("/g"):
            array += np.float32(1)
        yield row.openai, array


def _write_made_up_bpe(folder: Path, vocab_size: int) -> None:
    alphabet = [bytes([byte]) for byte in printable_bytes()]
    pairs = [(left, right) for left in alphabet for right in alphabet][: vocab_size - 257]
    if len(pairs) < vocab_size - 257 or vocab_size < 257:
        raise UserError(f"vocab_size: {vocab_size} must be 257 to {256 + 256**2 + 1}, or --bpe be given")
    tokens = [*alphabet, *(left + right for left, right in pairs)]
    write_bpe(folder, Tokenizer({token: i for i, token in enumerate(tokens)}, pairs, eot_id=vocab_size - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(PRESETS))
    parser.add_argument("out_dir", type=Path, help="becomes OpenAI's directory; replaced if it is there")
    parser.add_argument("--bpe", type=Path, help="a directory with encoder.json and vocab.bpe (GPT-2's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, help="hidden size, a multiple of the number of heads")
    arguments = parser.parse_args()
    width = {"n_embd": arguments.width} if arguments.width else {}
    config = GPTConfig(vocab_size=VOCAB_SIZE, **PRESETS[arguments.size] | width)
    make(config, arguments.out_dir, arguments.bpe, arguments.seed)


if __name__ == "__main__":
    stage_main(main)
