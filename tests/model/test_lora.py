"""LoRA against its written-out form and formulas; frozen layers against PyTorch's with rounded weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.learn import LinearWithLoRA
from gpt2core.model import GPT, GPTClassifier, GPTConfig, quantized
from gpt2core.model.lora import TARGETS, LoRALinear, add_lora, lora_layers, merge_lora
from gpt2core.model.quantized import QuantizedDtype, QuantizedLinear, from_nf4, nf4_levels, quantize_linears, to_nf4
from gpt2core.training.trainable import freeze_except

CONFIG = GPTConfig(50, n_positions=16, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
IDS = torch.arange(48).view(3, 16)


def tuned(model: GPT | GPTClassifier, targets: Sequence[str] = TARGETS, seed: int = 3) -> GPT | GPTClassifier:
    """With detours that are no longer zero."""
    freeze_except(model, "lora")
    torch.manual_seed(seed)
    add_lora(model, rank=4, alpha=6.0, dropout=0.0, targets=targets)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


def random_gpt(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(CONFIG)


def test_it_is_the_written_out_form_forward_and_backward() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    ours = LoRALinear(linear, rank=2, alpha=3.0)
    theirs = LinearWithLoRA(linear, rank=2, alpha=3.0)
    with torch.no_grad():
        ours.lora_B.normal_()
        theirs.lora.A.copy_(ours.lora_A)
        theirs.lora.B.copy_(ours.lora_B)
    wanted = (x, ours.lora_A, ours.lora_B)
    expected = torch.autograd.grad(theirs(x).square().sum(), (x, theirs.lora.A, theirs.lora.B))
    torch.testing.assert_close(ours(x), theirs(x))
    for one, other in zip(torch.autograd.grad(ours(x).square().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_on_the_detour_alone() -> None:
    torch.manual_seed(0)
    layer, x = LoRALinear(nn.Linear(400, 4), rank=2, alpha=2.0, dropout=0.75), torch.ones(1, 400)
    nn.init.ones_(layer.lora_A), nn.init.ones_(layer.lora_B)
    base = layer.base(x)
    counts = (layer(x) - base) / 2 * 0.25  # of the 400 inputs, those that were kept
    assert torch.allclose(counts, counts.round(), atol=1e-2) and 60 < counts[0, 0] < 140
    torch.testing.assert_close(layer.eval()(x) - base, torch.full((1, 4), 800.0))


@pytest.mark.parametrize("targets", [TARGETS, ("attn.c_attn",), ("mlp.c_proj", "attn.c_proj")])
def test_it_begins_as_the_model_and_merges_into_one_that_computes_the_same(targets: tuple[str, ...]) -> None:
    model, base = random_gpt(), random_gpt()
    add_lora(model, rank=4, alpha=6.0, dropout=0.0, targets=targets)
    assert torch.equal(model(IDS), base(IDS))
    learning = tuned(random_gpt(), targets)
    names = {name for name, _ in lora_layers(learning)}
    assert names == {f"transformer.h.{i}.{target}" for i in range(3) for target in targets}
    loud = learning(IDS)
    assert (loud - base(IDS)).abs().max() > 0.1
    merge_lora(learning)
    assert {name: p.shape for name, p in learning.named_parameters()} == {
        name: p.shape for name, p in base.named_parameters()
    }
    assert all(p.requires_grad and p.is_contiguous() for p in learning.parameters())
    torch.testing.assert_close(learning(IDS), loud, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_classifier", [False, True])
def test_only_the_detours_learn_and_a_classifiers_head(is_classifier: bool) -> None:
    torch.manual_seed(0)
    model = tuned(GPTClassifier(CONFIG, ("ham", "spam")) if is_classifier else GPT(CONFIG))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {f"{name}.{matrix}" for name, _ in lora_layers(model) for matrix in ("lora_A", "lora_B")}
    assert len(adapters) == 2 * 4 * 3 and learning == adapters | ({"score.weight"} if is_classifier else set())


def test_the_order_of_the_targets_draws_no_other_weights() -> None:
    one, other = tuned(random_gpt(), TARGETS), tuned(random_gpt(), TARGETS[::-1])
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora_targets: 'lm_head' is not known; allowed: attn.c_attn, attn.c_proj"):
        add_lora(random_gpt(), rank=2, alpha=2.0, dropout=0.0, targets=("lm_head",))


# Dettmers et al. 2023, "QLoRA", appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def rounded(weight: Tensor, dtype: QuantizedDtype) -> Tensor:
    """The weights that a frozen layer stands for: by PyTorch's own quantisation, or by looking at all 16 levels."""
    if dtype == "bfloat16":
        return weight.bfloat16().float()
    if dtype == "nf4":
        made = torch.zeros(weight.numel())
        for block, own in zip(weight.flatten().split(64), made.split(64), strict=True):
            levels = torch.tensor(NF4) * block.abs().max()
            own.copy_(levels[(block[:, None] - levels).abs().argmin(1)])
        return made.view_as(weight)
    scales = weight.abs().amax(1) / 127
    return torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(len(scales)), 0, -127, 127)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "nf4"])
def test_a_frozen_layer_is_pytorchs_with_rounded_weights(
    dtype: QuantizedDtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "ROWS", 20)
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48, bias), torch.randn(2, 5, 64, requires_grad=True)
    with torch.no_grad():
        linear.weight[3] = 0
    layer, weight = QuantizedLinear(linear, dtype), rounded(linear.weight.detach(), dtype)
    assert not list(layer.parameters()) and (weight - linear.weight).abs().max() > 1e-4
    grad = torch.randn(2, 5, 48)
    torch.testing.assert_close(layer(x), F.linear(x, weight, linear.bias), atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(layer(x), x, grad)
    torch.testing.assert_close(ours, grad @ weight, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, F.linear(x, weight, linear.bias), atol=0.05, rtol=0.02)
    assert torch.autograd.grad(y, x, grad.bfloat16())[0].dtype == torch.float32


def test_the_levels_of_nf4_are_the_papers() -> None:
    assert nf4_levels() == pytest.approx(NF4, abs=1e-6)


@pytest.mark.parametrize("shape", [(300, 64), (7, 33), (600, 3), (1, 1), (64, 100)], ids=str)
def test_a_weight_in_nf4_is_at_most_half_a_gap_away(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "NF4_BLOCKS", 7)  # many turns, the last with fewer blocks
    torch.manual_seed(0)
    weight = torch.randn(shape).t().contiguous().t()  # as a checkpoint has it
    weight[0] *= 1000  # its blocks alone are coarse
    packed, scales = to_nf4(weight)
    n_blocks = math.ceil(weight.numel() / 64)
    assert (packed.dtype, len(packed), len(scales)) == (torch.uint8, 32 * n_blocks, n_blocks)
    read = from_nf4(packed, scales, shape, torch.float32)
    widest = max(b - a for a, b in itertools.pairwise(NF4))
    for block, own, scale in zip(weight.flatten().split(64), read.flatten().split(64), scales, strict=True):
        m = block.abs().max()
        assert m == scale and own[block.abs() == m].abs() == m  # the largest stays
        assert (own - block).abs().max() <= m * widest / 2 * (1 + 1e-5)
    torch.testing.assert_close(read, rounded(weight, "nf4"), atol=0, rtol=1e-5)
    again = from_nf4(*to_nf4(read), shape, torch.float32)
    torch.testing.assert_close(again, read, atol=0, rtol=1e-6)
    assert torch.equal(from_nf4(packed, scales, shape, torch.bfloat16), read.bfloat16())


def test_weights_of_zero_stay_zero_in_nf4() -> None:
    weight = torch.zeros(3, 64)
    weight[1, ::2] = 1e-30
    read = from_nf4(*to_nf4(weight), (3, 64), torch.float32)
    torch.testing.assert_close(read, weight, atol=0, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "n_bytes"), [("bfloat16", 2), ("int8", 1), ("nf4", 0.5)])
def test_a_frozen_layer_keeps_few_bytes_for_the_backward_pass(dtype: QuantizedDtype, n_bytes: float) -> None:
    layer, x = QuantizedLinear(nn.Linear(64, 256), dtype), torch.randn(3, 64, requires_grad=True)
    assert layer.weight.nbytes == n_bytes * 64 * 256
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert any(tensor.data_ptr() == layer.weight.data_ptr() for tensor in kept)  # the hooks saw it
    others = [tensor for tensor in kept if tensor.data_ptr() != layer.weight.data_ptr()]
    assert sum(tensor.nbytes for tensor in others) <= 4 * 256


@pytest.mark.parametrize(("dtype", "far"), [("bfloat16", 0.02), ("int8", 0.06), ("nf4", 0.6)])
def test_gradients_over_a_rounded_base_are_near_those_over_the_whole_one(dtype: QuantizedDtype, far: float) -> None:
    gradients = []
    for rounds in (False, True):
        model = random_gpt()
        if rounds:
            quantize_linears(model.transformer.h, dtype)
        tuned(model)
        loss = model.loss(IDS, IDS.roll(-1, 1), reduction="sum") / IDS.numel()
        parameters = [p for _, layer in lora_layers(model) for p in (layer.lora_A, layer.lora_B)]
        gradients.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)]))
    exact, near = gradients
    assert 1e-4 < (near - exact).norm() / exact.norm() < far


def test_a_rounded_base_merges_into_the_whole_one() -> None:
    base, model = random_gpt(), random_gpt()
    quantize_linears(model.transformer.h, "int8")
    tuned(model, ("mlp.c_fc",))
    as_in_the_file = {name: tensor.t().contiguous().t() for name, tensor in base.state_dict().items()}
    merge_lora(model, as_in_the_file)
    assert model.transformer.h[0].mlp.c_fc.weight.t().is_contiguous()  # to write it takes no copy
    expected = tuned(random_gpt(), ("mlp.c_fc",))
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in base.named_parameters()}
    torch.testing.assert_close(model(IDS), expected(IDS), atol=1e-5, rtol=1e-4)
