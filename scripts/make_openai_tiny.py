"""Write a model directory in OpenAI's own format, by TensorFlow itself.

    python scripts/make_openai_tiny.py MODEL_DIR OUT_DIR

Makes gpt2core/assets/openai-tiny/ from a trained tiny model, so that the path from a TensorFlow checkpoint to a model
directory runs without the network.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.weights.openai import CHECKPOINT_PREFIX, FILES, HPARAMS, to_openai

BPE_VERSION = "#version: 0.2\n"


def make(model_dir: Path, out_dir: Path) -> None:
    """Write OpenAI's seven files. Raises UserError if the model directory is not a GPT-2 language model."""
    hf = files.read_json(model_dir / "config.json")
    sizes = {name: hf.get(name) for name in HPARAMS.values()}
    if missing := [name for name, value in sizes.items() if not isinstance(value, int)]:
        raise UserError(f"{model_dir / 'config.json'}: must give {', '.join(missing)}; is it a GPT-2?")
    weights = model_dir / "model.safetensors"
    try:
        tensors = safetensors.numpy.load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error})") from None
    tensors = to_openai(tensors, GPTConfig(**sizes), weights)
    merges = files.read_text(model_dir / "merges.txt")

    with files.atomic_dir(out_dir) as folder:
        save_with_tensorflow(tensors, folder / CHECKPOINT_PREFIX)
        files.write_json(folder / "hparams.json", {key: sizes[name] for key, name in HPARAMS.items()})
        files.write_text(folder / "encoder.json", files.read_text(model_dir / "vocab.json"))
        files.write_text(folder / "vocab.bpe", merges if merges.startswith("#version") else BPE_VERSION + merges)
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
    try:
        make(arguments.model_dir, arguments.out_dir)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
