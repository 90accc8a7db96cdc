"""Write a model directory in OpenAI's own format with TensorFlow.

    python scripts/make_openai_tiny.py MODEL_DIR OUT_DIR

This creates gpt2core/assets/openai-tiny/ from a trained tiny model, so that the conversion of a TensorFlow checkpoint
runs without the network.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from gpt2core import files
from gpt2core.checkpoint.model_dir import read_described
from gpt2core.checkpoint.openai import CHECKPOINT_PREFIX, FILES, write_bpe, write_hparams
from gpt2core.checkpoint.openai_export import openai_tensors
from gpt2core.runtime import stage_main
from gpt2core.tokenizer import load_tokenizer


def make(model_dir: Path, out_dir: Path) -> None:
    """Write OpenAI's seven files. Raises UserError if the model directory is not a GPT-2 language model."""
    described = read_described(model_dir)
    tensors = dict(openai_tensors(model_dir, described.config))
    tokenizer = load_tokenizer(model_dir)

    with files.atomic_dir(out_dir) as folder:
        save_with_tensorflow(tensors, folder / CHECKPOINT_PREFIX)
        write_hparams(folder / "hparams.json", described.config)
        write_bpe(folder, tokenizer)
        if {path.name for path in folder.iterdir()} != set(FILES):
            raise RuntimeError(f"wrote {sorted(path.name for path in folder.iterdir())}, not {FILES}")


def save_with_tensorflow(tensors: dict[str, np.ndarray], prefix: Path) -> None:
    """Save as OpenAI's code did: graph mode, one variable scope a slash, `tf.train.Saver`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow.compat.v1 as tf

    tf.logging.set_verbosity(tf.logging.ERROR)

    with tf.Graph().as_default(), tf.Session() as session:
        for name, array in tensors.items():
            *scopes, last = name.split("/")
            # Zeros first: an initial value given as an array would put the weights into the .meta file, too.
            with tf.variable_scope("/".join(scopes)):
                variable = tf.get_variable(
                    last, array.shape, tf.float32, initializer=tf.zeros_initializer(), use_resource=False
                )
            variable.load(array, session)
        tf.train.Saver().save(session, str(prefix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, help="config.json, model.safetensors, vocab.json, merges.txt")
    parser.add_argument("out_dir", type=Path, help="becomes OpenAI's directory; replaced if it is there")
    arguments = parser.parse_args()
    make(arguments.model_dir, arguments.out_dir)


if __name__ == "__main__":
    stage_main(main)
