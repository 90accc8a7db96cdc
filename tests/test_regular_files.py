"""Every reader of a file refuses a pipe, a device, and a folder in one line, and does not wait for them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2core.checkpoint.model_dir import load
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.checkpoint.verify import verify
from gpt2core.errors import UserError
from gpt2core.evaluation.judges.reply_cache import ReplyCache
from gpt2core.tasks.labeled_texts import read_table
from gpt2core.ui.models import Models, find_models
from tests.small import save_small_model

TINY = Path(__file__).parent.parent / "gpt2core/assets/openai-tiny"
JUDGE = {"judge": "openai", "model": "m"}


def open_index(path: Path) -> None:
    for file in TINY.glob("model.ckpt.data*"):
        shutil.copyfile(file, path.with_name(file.name))
    TFCheckpoint(path.with_suffix(""))


REPLIES = ReplyCache(Path(), JUDGE).path.name
READERS: dict[str, Callable[[Path], object]] = {
    "a.parquet": read_table,
    "model.ckpt.index": open_index,
    REPLIES: lambda path: ReplyCache(path.parent, JUDGE),
}


CASES = [(name, kind) for name in READERS for kind in ("pipe", "device", "folder", "loop")]
CASES.remove((REPLIES, "loop"))  # which does not exist, as a file of no replies


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_one_line(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    start_s = time.monotonic()
    with pytest.raises(UserError, match=f"{name}.*(regular file|folder|symbolic links)"):
        READERS[name](path)
    assert time.monotonic() - start_s < 5


def test_a_missing_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.parquet: no such file"):
        read_table(tmp_path / "a.parquet")


def test_an_index_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt.index"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match="is larger than"):
        open_index(path)


def test_a_shard_whose_name_is_too_long_is_a_problem(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "%s"}}' % ("a" * 5000))
    with pytest.raises(UserError, match="File name too long"):
        load(model)
    (problem,) = verify(model).problems
    assert "File name too long" in problem


@pytest.mark.timeout(20)
def test_a_model_card_that_is_a_pipe_is_no_note(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    os.mkfifo(model / "README.md")
    (info,) = find_models([model])
    assert Models([info]).note(info.name) == ""


def test_a_reply_that_is_nested_too_deeply_is_ignored(tmp_path: Path) -> None:
    path = ReplyCache(tmp_path, JUDGE).path
    path.write_bytes(b"[" * 200_000 + b"\n")
    assert ReplyCache(tmp_path, JUDGE).get([]) is None
