"""docs/scaling.md: its figures equal the script's, the script's equal PyTorch's, and its commands are valid."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from gpt2core.config.presets import PRESETS
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import load_params, read_values
from scripts import scaling
from scripts.scaling import Size
from tools import cluster_simulation
from tools.cluster_simulation import Cluster

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def fenced(language: str) -> list[str]:
    """The blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_tables_are_the_scripts() -> None:
    for table in scaling.tables().split("\n\n"):
        assert table in PAGE


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_the_sizes_are_openais(name: str, parameters: int) -> None:
    assert Size(name).parameters == parameters
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=scaling.V, **PRESETS[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(p.numel() for p in model.transformer.h[0].parameters()) == Size(name).block_parameters


def kept_bytes(n_layer: int, n_embd: int, n_head: int, checkpointing: bool = False) -> int:
    """What PyTorch keeps for the backward pass of 2 x 32 tokens; weights and their copies in bfloat16 do not count."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=128, n_positions=32, n_embd=n_embd, n_layer=n_layer, n_head=n_head))
    model.transformer.activation_checkpointing = checkpointing
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    ids = torch.randint(128, (2, 32))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.loss(ids, ids, reduction="sum")
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("n_embd", "n_head"), [(96, 2), (96, 6), (192, 4)])
def test_a_block_keeps_what_the_formula_says(n_embd: int, n_head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tokens of bfloat16 autocast. 64 tokens: as many as no weight has rows."""
    monkeypatch.setitem(PRESETS, "test", dict(n_layer=1, n_head=n_head, n_embd=n_embd, n_positions=32))
    block_bytes = kept_bytes(2, n_embd, n_head) - kept_bytes(1, n_embd, n_head)
    assert block_bytes == 64 * Size("test").block_activation_bytes


def test_a_checkpointed_block_keeps_its_input() -> None:
    assert kept_bytes(3, 96, 2, True) - kept_bytes(2, 96, 2, True) == 64 * 4 * 96


def test_memory_of_states_is_what_tensors_take() -> None:
    """Weights, gradients and AdamW's state of a real step, by their sizes."""
    sizes = PRESETS["tiny"]
    model = GPT(GPTConfig(vocab_size=scaling.V, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(128, (1, 4))
    model.loss(ids, ids, reduction="sum").backward()
    optimizer.step()
    tensors = [tensor for p in model.parameters() for tensor in (p, p.grad, *optimizer.state[p].values())]
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.dim())
    n_parameters = sum(p.numel() for p in model.parameters())
    assert n_bytes == 16 * n_parameters


def test_published_runs_reach_what_gpus_can() -> None:
    by_name = {(run.who, run.size.name): run for run in scaling.PUBLISHED}
    assert by_name["llm.c", "124M"].mfu == pytest.approx(0.64, abs=0.01)  # its own log says about 60%
    assert all(0.25 < run.mfu < 0.7 for run in scaling.PUBLISHED)
    assert all(0.5 < run.planned_s / run.duration_s < 2 for run in scaling.PUBLISHED)


def test_plans_fill_a_step_and_fit() -> None:
    for size in map(Size, scaling.SIZES):
        for sharding in ("none", "full"):
            plans = [scaling.Plan(size, scaling.H100, n, sharding) for n in scaling.GPU_COUNTS]
            assert max(plan.memory_bytes for plan in plans) <= 0.9 * scaling.H100.memory_bytes
            if sharding == "none":
                assert [plan.tokens_s for plan in plans] == sorted(plan.tokens_s for plan in plans)
            for plan in plans:
                assert plan.batch_size * plan.n_micro * plan.n * scaling.T == scaling.STEP_TOKENS


@pytest.mark.parametrize("size", ["124M", "1558M"])
def test_the_tables_of_failures_are_the_simulations(size: str) -> None:
    assert "\n".join(cluster_simulation.table(Size(size))) in PAGE


@pytest.mark.parametrize("interval_s", [60.0, 1000.0, 4000.0])
def test_the_simulation_loses_the_expected_time(interval_s: float) -> None:
    """With X exponential of mean M, E[floor((X - r) / a)] over X > r is exp(-r / M) / (exp(a / M) - 1)."""
    cluster = Cluster(mtbf_s=20_000.0, save_s=20.0, restart_s=300.0)
    M, a = cluster.mtbf_s, interval_s + cluster.save_s
    expected = 1 - interval_s * math.exp(-cluster.restart_s / M) / (M * math.expm1(a / M))
    assert cluster.lost_share(interval_s, n_failures=200_000) == pytest.approx(expected, rel=0.01)


def test_the_best_interval_is_youngs() -> None:
    """Where saving takes little of the time between failures."""
    cluster = Cluster(mtbf_s=1e6, save_s=10.0)
    assert cluster.best_s == pytest.approx(cluster.young_s, rel=0.25)


def test_the_launchers_are_ones_that_the_params_allow(tmp_path: Path) -> None:
    blocks = [yaml.safe_load(block)["pretrain"] for block in fenced("yaml") if block.startswith("pretrain:")]
    assert len(blocks) == 2
    params = read_values(ROOT / "profiles/gpt2-124m.yaml")
    params["pretrain"]["batch_size"] = 512
    for changes in blocks:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params | {"pretrain": params["pretrain"] | changes}))
        assert load_params(path).pretrain.launcher == changes["launcher"]
