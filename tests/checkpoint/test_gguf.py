"""A model directory with GPT-2's vocabulary, converted by llama.cpp's own script, and run by llama.cpp.

To run it: pip install llama-cpp-python sentencepiece, and set LLAMA_CPP to a folder with llama.cpp's source.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.inference import generate
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer import read_bpe
from tests.small import config_and_tokenizer

SOURCE = Path(os.environ.get("LLAMA_CPP", "absent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("llama_cpp") and (SOURCE / "convert_hf_to_gguf.py").exists()),
        reason="llama-cpp-python and the source of llama.cpp are not installed",
    ),
]
N_NEW = 20


def converted(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(SOURCE / "gguf-py"), *sys.path])
    return subprocess.run(
        [sys.executable, str(SOURCE / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(out), "--outtype", "f32"],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_llama_cpp_writes_the_same_greedy_tokens(mirror: Path, tmp_path: Path) -> None:
    llama_cpp = importlib.import_module("llama_cpp")
    tokenizer = read_bpe(mirror / "gpt2-bpe/encoder.json", mirror / "gpt2-bpe/vocab.bpe")
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_positions=128, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3
    )
    save_model(tmp_path / "m", GPT(config), tokenizer)
    done = converted(tmp_path / "m", tmp_path / "m.gguf")
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, verbose=False)
    text = "The keeper took a lamp"
    ids = tokenizer.encode(text)
    assert theirs.tokenize(text.encode(), add_bos=False) == ids
    model, _ = load_language_model(tmp_path / "m")
    expected = generate(model, torch.tensor([ids]), N_NEW)[0, len(ids) :].tolist()
    tokens = theirs.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
    assert [next(tokens) for _ in range(N_NEW)] == expected
    theirs.close()


def test_a_tokenizer_of_our_own_is_refused_by_name(tmp_path: Path) -> None:
    """The converter knows tokenizers by what they make of one text (docs/serving.md)."""
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "m", GPT(sizes), tokenizer)
    done = converted(tmp_path / "m", tmp_path / "m.gguf")
    assert done.returncode != 0
    assert "pre-tokenizer was not recognized" in done.stderr
