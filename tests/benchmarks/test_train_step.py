"""The training benchmark: its count of operations against PyTorch's, its sides, and the memory that it sees."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_step
from benchmarks.train_step import Work, flops_per_token, new_step
from gpt2core.model import GPTConfig

TINY = Work("tiny", batch_size=2, context=32, dtype="float32", compile=False)


def test_operations_are_those_that_pytorch_counts() -> None:
    """In transformers' GPT-2 with attention written out. PyTorch counts products alone: the formula's biases and norms,
    one weight in a thousand, are none."""
    transformers = pytest.importorskip("transformers")
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = dict(n_embd=768, n_layer=2, n_head=12)
    config = transformers.GPT2Config(**sizes, attn_implementation="eager", use_cache=False)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = transformers.GPT2LMHeadModel(config)
        model(input_ids=torch.zeros(1, 1024, dtype=torch.long)).logits.sum().backward()
    target_positions = counter.get_total_flops() / 1024
    assert flops_per_token(GPTConfig(vocab_size=50257, **sizes), 1024) == pytest.approx(target_positions, rel=2e-3)


@pytest.mark.parametrize("side", train_step.SIDES)
def test_each_side_learns_its_batch_from_a_uniform_guess(side: str) -> None:
    if side == "transformers":
        pytest.importorskip("transformers")
    step = new_step(TINY, side, torch.device("cpu"))
    losses = [step().item() for _ in range(4)]
    assert losses[0] == pytest.approx(10.83, abs=0.2)  # ln 50,257
    assert losses[-1] < losses[0] - 0.3


def test_a_worker_times_its_steps() -> None:
    with train_step.worker(TINY, "gpt2core") as ask:
        assert 0 < ask(train_step.step_s) < 60


def end() -> float:
    os._exit(3)


def test_a_worker_that_ends_is_reported() -> None:
    with train_step.worker(TINY, "gpt2core") as ask, pytest.raises(RuntimeError, match="of gpt2core ended"):
        ask(end)


@pytest.mark.slow
def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--size", "tiny", "--context", "32", "--no-compile", "--sides", "nanogpt", "gpt2core"]
    train_step.main([*common, "--rounds", "2"])
    speed = capsys.readouterr().out
    for side, relative in (("nanogpt", r"1\.00"), ("gpt2core", r"\d+\.\d\d")):
        found = re.search(rf"{side} +([\d.]+) \(([\d.]+) to ([\d.]+)\) +{relative} × the better peer +MFU +\d+%", speed)
        median, least, most = map(float, found.groups())
        assert least <= median <= most
    train_step.main([*common, "--memory"])
    memory = capsys.readouterr().out
    # Weights, gradients and AdamW's two moments alone are 4 × 29 MB.
    assert all(float(gb) > 0.116 for gb in re.findall(r"([\d.]+) GB", memory))
    assert len(re.findall(r"([\d.]+) GB", memory)) == 2


# -- Paths of a GPU, as far as a machine without one can test them ---------------------------------------------------


@pytest.mark.parametrize("side", ["nanogpt", "gpt2core"])
def test_the_step_compiles_without_graph_breaks(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that needs no Triton: the compiled part is one graph, and learns as without."""
    compiled: list[object] = []
    original = torch.compile

    def compile_whole(model: torch.nn.Module, **options: object) -> torch.nn.Module:
        compiled.append(model)
        return original(model, fullgraph=True, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_whole)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(
        self, "_compiled_call_impl", compile_whole(self._call_impl)
    ))  # fmt: skip
    work = replace(TINY, compile=True)
    torch._dynamo.reset()
    losses, expected = (
        [step().item() for _ in range(2)] for step in (new_step(w, side, torch.device("cpu")) for w in (work, TINY))
    )
    assert compiled
    assert losses == pytest.approx(expected, rel=1e-4)


def test_operations_of_our_step_are_those_that_pytorch_counts() -> None:
    """Attention is written out, as the formula counts it: kernels recompute a product in the backward pass."""
    work = Work("tiny", batch_size=1, context=256, dtype="float32", compile=False)
    model, loss = train_step.our_side(work)
    ids = torch.randint(work.config.vocab_size, (1, 257))
    # The gradient of the head is added in place, which PyTorch does not count.
    in_place = {torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        loss(ids[:, :-1], ids[:, 1:]).backward()
    assert counter.get_total_flops() == pytest.approx(work.flops, rel=2e-3)


@pytest.mark.parametrize(("limit", "size"), [(1, 1), (2, 2), (3, 2), (64, 64), (100, 64), (10**9, 1024)])
def test_the_batch_size_is_the_largest_power_of_two_below_a_memory_limit(limit: int, size: int) -> None:
    tried: list[int] = []

    def fits(n: int) -> bool:
        tried.append(n)
        return n <= limit

    assert train_step.largest_batch(fits) == size
    assert tried == sorted(set(tried)) and max(tried) <= max(2 * size, 1)


def test_a_batch_that_never_fits_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not fit"):
        train_step.largest_batch(lambda n: False)


def test_a_step_that_runs_out_of_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def with_batch_size(n: int) -> train_step.Step:
        def step() -> torch.Tensor:
            if n > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            steps.append(n)
            return torch.zeros(())

        return step

    monkeypatch.setattr(train_step, "_with_batch_size", with_batch_size, raising=False)
    assert train_step.largest_batch(train_step.fits) == 4
    assert steps == [1, 1, 2, 2, 4, 4]  # the second step has the optimizer's state


def test_the_batch_size_is_that_of_the_side_that_needs_most(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[float] = []

    @contextlib.contextmanager
    def worker(work: Work, side: str, memory: float) -> Iterator[train_step.Ask]:
        parts.append(memory)
        assert work.batch_size == 1
        limit = {"nanogpt": 16, "gpt2core": 64}[side]
        yield lambda function: function.args[0] <= limit  # type: ignore[attr-defined]

    monkeypatch.setattr(train_step, "worker", worker)
    assert train_step.batch_size_for_memory(TINY, ["nanogpt", "gpt2core"]) == 16
    assert parts == [0.5, 0.5]


def test_a_worker_steps_with_other_batch_sizes() -> None:
    with train_step.worker(TINY, "gpt2core") as ask:
        assert ask(functools.partial(train_step.fits, 1)) and ask(functools.partial(train_step.fits, 4))


def test_auto_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GPT2CORE_DEVICE", "cpu")
    with pytest.raises(SystemExit, match="2"):
        train_step.main(["--batch-size", "auto"])
    assert "--batch-size auto needs a GPU" in capsys.readouterr().err
    assert train_step.batch_size("8") == 8


def test_on_a_gpu_the_product_is_of_8192_cubed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: tensors without memory, and no clock."""
    sizes: list[tuple[int, ...]] = []

    def mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        sizes.append((*a.shape, *b.shape, *out.shape))
        assert a.dtype == torch.bfloat16

    def randn(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        assert device.type == "cuda"
        return torch.empty(*shape, device="meta", dtype=dtype)

    monkeypatch.setattr(train_step.torch, "mm", mm)
    monkeypatch.setattr(train_step.torch, "randn", randn)
    monkeypatch.setattr(train_step.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(train_step, "best_time_s", lambda work, repeats: work() or 2.0)
    assert train_step.product_flops("bfloat16", torch.device("cuda")) == 8192**3
    assert sizes == [(8192,) * 6]
