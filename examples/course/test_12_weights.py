"""Step 12: GPT-2's weights in your model. Its logits are those of the pipeline."""

from pathlib import Path

import pytest
import torch
from gpt import generate, load_gpt2

import gpt2core
from gpt2core.checkpoint.openai import convert

ROOT = Path(__file__).parents[2]
DOWNLOADED = sorted(path.parent for path in (ROOT / "models" / "openai").glob("*/config.json"))


@pytest.fixture
def small(tmp_path):
    """Convert a small GPT-2 from OpenAI's own format to a model directory."""
    convert(Path(gpt2core.__file__).parent / "assets" / "openai-tiny", tmp_path / "gpt2")
    return tmp_path / "gpt2"


def check(folder):
    ours, (theirs, tokenizer) = load_gpt2(folder), gpt2core.load(folder)
    ids = torch.tensor([tokenizer.encode("Long ago, there was a lamp on a hill. It was")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-3, rtol=1e-4)
    written = generate(ours, ids, 12)
    assert torch.equal(written, gpt2core.generate(theirs, ids, 12))
    print(tokenizer.decode(written[0].tolist()))


def test_a_small_gpt2_gives_the_pipelines_logits(small):
    check(small)


@pytest.mark.parametrize("folder", DOWNLOADED, ids=lambda folder: folder.name)
def test_openais_gpt2_gives_the_pipelines_logits(folder):
    """Runs for each size that `dvc repro convert@124M` (or another size) has converted."""
    check(folder)
