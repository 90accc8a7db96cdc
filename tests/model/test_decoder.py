"""The blocks in C against float64, bit by bit against themselves, and what happens where they cannot be compiled."""

from __future__ import annotations

import copy
import itertools
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference import generate_batch
from gpt2core.model import GPT, GPTConfig, decoder
from gpt2core.model.decoder import CompiledLinear, Decoder
from gpt2core.model.inference import InferenceGPT, pack
from gpt2core.model.kv_cache import KVCache
from tests.model.test_inference import CONFIG, random_model

TOLERANCE = {"float32": 2e-6, "bfloat16": 0.01, "int8": 0.02}  # of the outputs' standard deviation


@pytest.fixture(scope="module", params=["this CPU", "AVX2"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    """The decoder, also as on a CPU without AVX-512."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "AVX2":
            patch.setattr(decoder, "FLAGS", tuple(flag.replace("native", "haswell") for flag in decoder.FLAGS))
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        decoder.load.cache_clear()
        found = decoder.load()
        if found is None:
            pytest.skip("decoder.c cannot be compiled here")
        yield found
        decoder.load.cache_clear()


def layer_of(compiled: Decoder, dtype: str, n_in: int, n_out: int, bias: bool = True) -> tuple[CompiledLinear, Tensor]:
    """A compiled layer, and its weights [out, in + 1] in float64, with the bias as the last column."""
    generator = torch.Generator().manual_seed(n_in + 1000 * n_out)
    weight = torch.randn(n_out, n_in, generator=generator)
    constant = torch.randn(n_out, generator=generator) if bias else None
    layer = CompiledLinear(compiled, weight, constant, dtype)
    return layer, torch.cat([weight, torch.zeros(n_out, 1) if constant is None else constant[:, None]], dim=1).double()


@pytest.mark.parametrize("n_in", [1, 3, 64, 97, 1600])
@pytest.mark.parametrize("n_out", [1, 15, 64, 129])
def test_products_are_right(compiled: Decoder, n_in: int, n_out: int) -> None:
    for dtype, n_rows in itertools.product(compiled.dtypes, (1, 2, 4, 5, 6, 7, 24, 25, 61)):
        layer, weight = layer_of(compiled, dtype, n_in, n_out, bias=n_rows % 2 == 0)
        x = torch.randn(n_rows, n_in, generator=torch.Generator().manual_seed(n_rows))
        expected = torch.cat([x, torch.ones(n_rows, 1)], dim=1).double() @ weight.T
        error = (layer(x).double() - expected).abs().max()
        assert error < TOLERANCE[dtype] * (n_in**0.5 + 1) * 3


def test_a_row_does_not_depend_on_other_rows_and_threads(compiled: Decoder) -> None:
    x = torch.randn(40, 97, generator=torch.Generator().manual_seed(0))
    n_threads = torch.get_num_threads()
    try:
        for dtype in compiled.dtypes:
            layer, _ = layer_of(compiled, dtype, 97, 150)
            together = layer(x)
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                assert torch.equal(layer(x), together)
                assert torch.equal(torch.cat([layer(row[None]) for row in x]), together)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(compiled: Decoder, value: float) -> None:
    x = torch.ones(2, 64)
    x[1, 5] = value
    for dtype in compiled.dtypes:
        layer, _ = layer_of(compiled, dtype, 64, 70)
        y = layer(x)
        assert y[0].isfinite().all() and not y[1].isfinite().any()


@pytest.mark.parametrize("config", [CONFIG, GPTConfig(101, n_positions=24, n_embd=30, n_layer=3, n_head=3)])
@pytest.mark.parametrize("T", [1, 2, 7, decoder.MAX_NEW_TOKENS])
def test_blocks_are_the_models(compiled: Decoder, config: GPTConfig, T: int) -> None:
    """With a cache and a mask, for several new tokens of three sequences, one of which starts later."""
    model = random_model(config)
    packed = pack(model, "float32")
    assert isinstance(packed, InferenceGPT) and packed.transformer._compiled
    ids = torch.randint(101, (3, 5 + T), generator=torch.Generator().manual_seed(T))
    mask = torch.ones(3, 1, 5 + T, 5 + T, dtype=torch.bool).tril()
    mask[1, :, :, :2] = False
    mask |= torch.eye(5 + T, dtype=torch.bool)
    for each in (None, mask):
        hidden = []
        for side, dtype in ((packed, torch.float32), (copy.deepcopy(model).double(), torch.float64)):
            cache = KVCache(config, 3, 5 + T, device=ids.device, dtype=dtype)
            side.transformer(ids[:, :5], cache, mask=None if each is None else each[..., :5, :5])
            hidden.append(side.transformer(ids[:, 5:], cache, mask=None if each is None else each[..., 5:, :]))
            assert cache.length == 5 + T
        torch.testing.assert_close(hidden[0].double(), hidden[1], rtol=1e-4, atol=1e-4)


def test_a_sequence_does_not_depend_on_others_and_on_the_number_of_new_tokens(compiled: Decoder) -> None:
    """Bit by bit, in every dtype; and from several threads of Python at once."""
    ids = torch.randint(101, (3, 8), generator=torch.Generator().manual_seed(0))
    for dtype in compiled.dtypes:
        packed = pack(random_model(CONFIG), dtype)

        def hidden(rows: Tensor, step: int, packed: Any = packed) -> Tensor:
            cache = KVCache(CONFIG, len(rows), 20, device=rows.device, dtype=torch.float32)
            return torch.cat([packed.transformer(part, cache) for part in rows.split(step, dim=1)], dim=1)

        together = hidden(ids, 8)
        for step in (1, 3, 8):
            for row in range(3):
                assert torch.equal(hidden(ids[row : row + 1], step)[0], together[row])
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(found, together) for found in pool.map(lambda _: hidden(ids, 2), range(16)))


def test_a_mask_may_show_later_tokens(compiled: Decoder) -> None:
    model = random_model(CONFIG)
    ids = torch.randint(101, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    caches = [KVCache(CONFIG, 2, 8, device=ids.device, dtype=torch.float32) for _ in range(2)]
    found, expected = (
        side.transformer(ids, cache, mask=mask)
        for side, cache in zip((pack(model, "float32"), model), caches, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(compiled: Decoder) -> None:
    """C would write beyond the cache."""
    model = random_model(CONFIG)
    packed, ids = pack(model, "float32"), torch.zeros(1, 8, dtype=torch.long)
    two_layers, one_layer = CONFIG, replace(CONFIG, n_layer=1)
    for config, B, room, dtype in (
        (two_layers, 1, 4, torch.float32), (two_layers, 2, 8, torch.float32), (two_layers, 1, 8, torch.bfloat16),
        (one_layer, 1, 8, torch.float32),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="cache"):
            packed.transformer(ids, KVCache(config, B, room, device=ids.device, dtype=dtype))
    with pytest.raises(ValueError, match=r"needed: \[N, 64\]"):
        CompiledLinear(compiled, torch.ones(3, 64), None, "float32")(torch.ones(2, 63))
    with pytest.raises(UserError, match="the model is in float64; load it in float32"):
        pack(copy.deepcopy(model).double(), "float32")


def test_rows_that_end_leave_the_others_as_they_were(compiled: Decoder) -> None:
    """The cache is cut while a batch is generated."""
    model = random_model(CONFIG)
    prompts = [[5, 6, 7], [8], [9] * 11, [1, 2]]
    lengths = [9, 2, 5, 12]
    expected = generate_batch(model, prompts, lengths, eos_id=None)
    assert generate_batch(pack(model, "float32"), prompts, lengths, eos_id=None) == expected


# -- Where it cannot be compiled -------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of an empty cache; no decoder is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decoder.load.cache_clear()
    yield tmp_path
    decoder.load.cache_clear()


def still_decodes(model: GPT) -> bool:
    ids = torch.tensor([[1, 2, 3]])
    return torch.allclose(pack(model, "float32")(ids), model(ids), atol=1e-4)


def test_the_decoder_is_compiled_once_into_a_private_folder(compiled: Decoder, empty_cache: Path) -> None:
    assert decoder.load() is not None
    (path,) = (empty_cache / "gpt2core").iterdir()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.stat().st_mtime_ns
    decoder.load.cache_clear()
    assert decoder.load() is not None
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "obstacle", ["no compiler", "a compiler that fails", "no command", "others can write", "no folder", "off"]
)
def test_without_the_decoder_pytorch_decodes(obstacle: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if obstacle == "no compiler":
        monkeypatch.setenv("PATH", str(empty_cache))
        monkeypatch.delenv("CC", raising=False)
    elif obstacle == "a compiler that fails":
        monkeypatch.setenv("CC", "false")
    elif obstacle == "no command":
        monkeypatch.setenv("CC", "gcc '")
    elif obstacle == "others can write":
        (empty_cache / "gpt2core").mkdir()
        (empty_cache / "gpt2core").chmod(0o777)
    elif obstacle == "no folder":
        (empty_cache / "gpt2core").write_text("")
    else:
        monkeypatch.setenv(decoder.VARIABLE, "off")
    assert decoder.load() is None
    assert still_decodes(random_model(CONFIG))
    assert not list(empty_cache.rglob("*.so"))


def test_a_compiler_may_have_arguments(compiled: Decoder, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc -g")
    assert decoder.load() is not None


def test_with_a_damaged_library_pytorch_decodes(
    compiled: Decoder, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    decoder._compiled(["gcc" if shutil.which("gcc") else "cc"]).write_bytes(b"no library")
    assert decoder.load() is None
    assert still_decodes(random_model(CONFIG))
