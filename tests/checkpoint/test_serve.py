"""`transformers serve` on the model directories as they stand, asked by OpenAI's own client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.inference import generate
from gpt2core.inference.respond import respond
from gpt2core.model import GPT
from tests.small import config_and_tokenizer

pytestmark = pytest.mark.slow
START_S = 180


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    config, tokenizer = config_and_tokenizer(n_positions=400, n_embd=32, initializer_range=0.5)
    save_model(folder / "pretrained", GPT(config), tokenizer)
    save_model(folder / "instruct", GPT(config), tokenizer, chat_template=prompts.chat_template())
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[openai.OpenAI]:
    pytest.importorskip("accelerate")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu"], cwd=models, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end_s = time.monotonic() + START_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < end_s, "transformers serve does not start"
            time.sleep(0.2)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize("input_text", ["", "The keeper took it to the tower."])
def test_chat_gives_the_response_that_we_give(client: openai.OpenAI, models: Path, input_text: str) -> None:
    """Its prompt is the chat template: a user's message is the instruction, a system message the input."""
    model, tokenizer = gpt2core.load(models / "instruct")
    entry = {"instruction": "Where is the lamp?", "input": input_text}
    (expected,) = respond(model, tokenizer, [entry], 20)
    chat = [{"role": "system", "content": input_text}] if input_text else []
    chat.append({"role": "user", "content": entry["instruction"]})
    asked = {"model": "./instruct", "messages": chat, "max_tokens": 20, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content.strip() == expected != ""
    prompt = tokenizer.encode(prompts.alpaca(entry["instruction"], entry["input"]))
    assert answer.usage.prompt_tokens == len(prompt)
    pieces = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(filter(None, pieces)).strip() == expected and len(pieces) > 3


def test_a_completion_is_the_text_that_we_write(client: openai.OpenAI, models: Path) -> None:
    model, tokenizer = gpt2core.load(models / "pretrained")
    ids = torch.tensor([tokenizer.encode("The lamp")])  # [1, P]
    new = generate(model, ids, 20, eos_id=tokenizer.eot_id)[0, ids.size(1) :].tolist()
    expected = tokenizer.decode([token for token in new if token != tokenizer.eot_id])
    answer = client.completions.create(model="./pretrained", prompt="The lamp", max_tokens=20, temperature=0)
    assert answer.choices[0].text == expected != ""
