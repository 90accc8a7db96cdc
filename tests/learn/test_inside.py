"""The page of the course that shows a small model: its data are the model's own, and the site embeds it."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from pathlib import Path

import inside
import numpy as np
import pytest
import torch

from tests.conftest import ROOT


def test_the_page_has_the_attention_of_the_model(tmp_path: Path) -> None:
    inside.main(str(tmp_path / "inside.html"), steps=2)
    page = (tmp_path / "inside.html").read_text(encoding="utf-8")
    found = re.search(r'<script[^>]*id="inspection"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    model, tokenizer = inside.small_model(steps=2)
    ids = tokenizer.encode(inside.PROMPT)
    assert data["ids"] == ids and (data["n_layer"], data["n_head"]) == (2, 4)

    attention = model.transformer.h[0].attn
    x = model.transformer.wte(torch.tensor([ids])) + model.transformer.wpe(torch.arange(len(ids)))
    q, k, _ = attention.c_attn(model.transformer.h[0].ln_1(x)).chunk(3, dim=-1)  # [1, T, C] each
    scores = q[0, :, :16] @ k[0, :, :16].T / 4  # the first head: 16 of 64 channels
    weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf")).softmax(-1)
    roots = np.frombuffer(base64.b64decode(data["attention"]), dtype=np.uint8).reshape(2, 4, len(ids), len(ids))
    np.testing.assert_allclose(roots[0, 0] / 255, weights.detach().sqrt().numpy(), atol=0.003)


def test_the_site_embeds_it_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "docs" / "mkdocs_hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    monkeypatch.setattr(hooks, "INSIDE", tmp_path / "inside.html")
    assert hooks.inside() == ""
    (tmp_path / "inside.html").write_text("<p></p>")
    assert 'src="../inside.html"' in hooks.inside() and "title=" in hooks.inside()
