"""The model exported by `torch.export` and to ONNX computes the same logits at any batch size and length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import Dim, ExportedProgram

from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.model import GPT
from tests.small import save_small_model

pytestmark = pytest.mark.slow
SHAPES = [(1, 1), (1, 2), (3, 7), (2, 12), (4, 320)]  # [B, T], the last as long as the context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    model, _ = load_language_model(save_small_model(tmp_path_factory.mktemp("export") / "m"))
    return model.eval()


@pytest.fixture(scope="module")
def exported(model: GPT) -> ExportedProgram:
    ids = torch.arange(24).view(2, 12)  # [B, T]
    sizes = {0: Dim("batch"), 1: Dim("length", max=model.config.n_positions)}
    return torch.export.export(model, (ids,), dynamic_shapes={"ids": sizes})


def test_the_exported_program_computes_the_same(model: GPT, exported: ExportedProgram, tmp_path: Path) -> None:
    torch.export.save(exported, tmp_path / "gpt.pt2")
    program = torch.export.load(tmp_path / "gpt.pt2").module()
    for shape in SHAPES:
        ids = torch.randint(model.config.vocab_size, shape)
        torch.testing.assert_close(program(ids), model(ids), atol=0, rtol=0)
    with pytest.raises((AssertionError, RuntimeError), match="320"):
        program(torch.zeros(1, 321, dtype=torch.long))


def test_onnx_runtime_computes_the_same(model: GPT, exported: ExportedProgram, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(exported, dynamo=True, input_names=["ids"], output_names=["logits"], verbose=False)
    assert program is not None
    program.save(tmp_path / "gpt.onnx")
    onnx.checker.check_model(tmp_path / "gpt.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "gpt.onnx", providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        ids = torch.randint(model.config.vocab_size, shape)
        (logits,) = session.run(["logits"], {"ids": ids.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(ids), atol=1e-4, rtol=1e-4)
