"""Compare the kernels of `numerics: portable` with float64 and print the failures as JSON; see test_kernels.py."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from gpt2core import numerics

numerics.prepare("portable")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

aten = torch.ops.aten
SPECIAL = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, -80.0, 80.0])
ATTENTION_LENGTHS = (1, 7, 128, 129, 200, 256)

references: dict[str, Any] = {}  # of PyTorch's own kernels, computed before they are replaced
failures: dict[str, str] = {}
n_checks = 0


def check(name: str, found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Note a failure unless `found` equals `wanted` up to a relative and absolute error of `tolerance`."""
    global n_checks
    n_checks += 1
    if found.shape != wanted.shape:
        failures[name] = f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
        return
    try:
        torch.testing.assert_close(
            found.detach().double(), wanted.detach().double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
    except AssertionError as error:
        failures[name] = " ".join(str(error).split())


def tolerance_of(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


def layouts(matrix: Tensor) -> dict[str, Tensor]:
    """The same numbers in memory layouts that a kernel must tell apart."""
    rows, columns = matrix.shape[-2:]
    wide = matrix.new_zeros(*matrix.shape[:-2], 2 * rows, 2 * columns + 1)
    wide[..., ::2, 1::2] = matrix
    shifted = matrix.new_zeros(*matrix.shape[:-1], columns + 3)
    shifted[..., 2:-1] = matrix
    return {
        "contiguous": matrix,
        "transposed": matrix.mT.contiguous().mT,
        "strided": wide[..., ::2, 1::2],
        "slice": shifted[..., 2:-1],
    }


def products(dtype: torch.dtype) -> None:
    """mm, bmm, mv, dot, addmm, addmv and baddbmm, their `out` and in-place variants, in all layouts."""
    tolerance = tolerance_of(dtype)
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    a, b, c = normal(5, 7), normal(7, 3), normal(5, 3)
    results = a @ b, a @ b[:, 0], a[0] @ b[:, 0], torch.addmm(c, a, b), a[None] @ b[None], c.clone().addmm_(a, b)
    if {result.dtype for result in results} != {dtype}:
        failures[f"{dtype}"] = f"results of {[result.dtype for result in results]}"
    for first, x in layouts(a).items():
        for second, y in layouts(b).items():
            name = f"{dtype} {first} {second}"
            check(f"mm {name}", x @ y, _mm(x, y), tolerance)
            check(f"addmm {name}", torch.addmm(c, x, y), _exact(c) + _mm(x, y), tolerance)
            for where, out in layouts(torch.zeros(5, 3, dtype=dtype)).items():
                if where != "slice":
                    torch.mm(x, y, out=out)
                    check(f"mm.out {name} {where}", out, _mm(x, y), tolerance)
    expanded = normal(1, 7).expand(5, 7)
    check(f"mm {dtype} expanded", expanded @ b, _mm(expanded, b), tolerance)
    column = normal(7, 1).expand(7, 3)
    check(f"mm {dtype} expanded columns", a @ column, _mm(a, column), tolerance)
    check(f"mm {dtype} one row", a[:1] @ b, _mm(a[:1], b), tolerance)
    check(f"mm {dtype} one column", a @ b[:, :1], _mm(a, b[:, :1]), tolerance)
    check(f"mv {dtype}", a @ b[:, 0], _mm(a, b[:, :1])[:, 0], tolerance)
    check(f"mv {dtype} transposed", b.T @ a[0], _mm(b.T, a[:1].T)[:, 0], tolerance)
    check(f"dot {dtype}", a[0] @ b[:, 1], (_exact(a[0]) * _exact(b[:, 1])).sum(), tolerance)
    check(f"dot.out {dtype}", torch.dot(a[0], b[:, 1], out=a.new_empty(())), _exact(a[0]) @ _exact(b[:, 1]), tolerance)

    for alpha, beta in ((1, 1), (0.5, 2), (-1, 0.25), (3, 0), (0, 1)):
        options = dict(alpha=alpha, beta=beta)
        wanted = beta * _exact(c) + alpha * _mm(a, b)
        name = f"{dtype} alpha={alpha} beta={beta}"
        check(f"addmm {name}", torch.addmm(c, a, b, **options), wanted, tolerance)
        check(f"addmm.out {name}", torch.addmm(c, a, b, **options, out=torch.empty_like(c)), wanted, tolerance)
        check(f"addmm_ {name}", c.clone().addmm_(a, b, **options), wanted, tolerance)
        check(f"addmm_ transposed {name}", c.T.contiguous().T.addmm_(a, b, **options), wanted, tolerance)
        wanted = beta * _exact(c[0]) + alpha * _mm(a, b)
        check(f"addmm row {name}", torch.addmm(c[0], a, b, **options), wanted, tolerance)
        wanted = beta * _exact(c[:, 0]) + alpha * _mm(a, b[:, :1])[:, 0]
        check(f"addmv {name}", torch.addmv(c[:, 0], a, b[:, 0], **options), wanted, tolerance)
        A, B, C = a.expand(2, 5, 7), torch.stack((b, 2 * b)), torch.stack((c, -c))
        wanted = beta * _exact(C) + alpha * _mm(A, B)
        check(f"baddbmm {name}", torch.baddbmm(C, A, B, **options), wanted, tolerance)
        check(f"baddbmm_ {name}", C.clone().baddbmm_(A, B, **options), wanted, tolerance)
        check(f"baddbmm.out {name}", torch.baddbmm(C, A, B, **options, out=torch.empty_like(C)), wanted, tolerance)
        check(f"baddbmm row {name}", torch.baddbmm(c[0], A, B, **options), beta * _exact(c[0]) + alpha * _mm(A, B),
              tolerance)  # fmt: skip
    poison = torch.full_like(c, math.nan)
    check(f"addmm {dtype} beta=0 of NaN", torch.addmm(poison, a, b, beta=0), _mm(a, b), tolerance)
    check(f"addmm_ {dtype} beta=0 of NaN", poison.clone().addmm_(a, b, beta=0), _mm(a, b), tolerance)
    check(f"baddbmm {dtype} beta=0 of NaN", torch.baddbmm(poison[None], a[None], b[None], beta=0), _mm(a, b)[None],
          tolerance)  # fmt: skip
    check(f"addmv {dtype} beta=0 of NaN", torch.addmv(poison[:, 0], a, b[:, 0], beta=0), _mm(a, b)[:, 0], tolerance)

    for layout, x in layouts(normal(3, 5, 7)).items():
        for other, y in layouts(normal(3, 7, 4)).items():
            check(f"bmm {dtype} {layout} {other}", torch.bmm(x, y), _mm(x, y), tolerance)
    x, y = normal(3, 5, 7), normal(3, 7, 4)
    check(f"bmm.out {dtype}", torch.bmm(x, y, out=x.new_empty(3, 5, 4)), _mm(x, y), tolerance)
    check(f"bmm {dtype} expanded", a.expand(3, 5, 7) @ y, _mm(a.expand(3, 5, 7), y), tolerance)
    big, other = normal(5, 96, 160), normal(5, 160, 128)  # large enough for two threads
    check(f"bmm {dtype} two threads", big @ other, _mm(big, other), 10 * tolerance)
    C = normal(5, 96, 128)
    check(f"baddbmm {dtype} two threads", torch.baddbmm(C, big, other, beta=0.5), 0.5 * _exact(C) + _mm(big, other),
          10 * tolerance)  # fmt: skip

    for rows, inner, columns in ((0, 7, 3), (5, 0, 3), (5, 7, 0), (0, 0, 0)):
        x, y, z = normal(rows, inner), normal(inner, columns), normal(rows, columns)
        name = f"{dtype} [{rows}, {inner}] @ [{inner}, {columns}]"
        check(f"mm {name}", x @ y, _mm(x, y), tolerance)
        check(f"bmm {name}", torch.stack((x, x)) @ torch.stack((y, y)), _mm(x, y).expand(2, rows, columns), tolerance)
        check(f"addmm {name}", torch.addmm(z, x, y, beta=0.5), 0.5 * _exact(z), tolerance)
        check(f"addmm {name} beta=0", torch.addmm(z * math.nan, x, y, beta=0), torch.zeros(rows, columns), tolerance)
    check(f"mv {dtype} empty", normal(4, 0) @ normal(0), torch.zeros(4), tolerance)
    check(f"dot {dtype} empty", normal(0) @ normal(0), torch.zeros(()), tolerance)


def _exact(x: Tensor) -> Tensor:
    return x.double()


def _mm(x: Tensor, y: Tensor) -> Tensor:
    """The product in float64, without a kernel that multiplies matrices."""
    return (x.double().unsqueeze(-1) * y.double().unsqueeze(-3)).sum(-2)


def gradients() -> None:
    """A linear layer and a product's gradients."""
    draw = torch.Generator().manual_seed(2)
    x, w, bias, upstream = (torch.randn(*s, generator=draw) for s in ((4, 6, 5), (3, 5), (3,), (4, 6, 3)))
    for tensor in (x, w, bias):
        tensor.requires_grad_()
    F.linear(x, w, bias).backward(upstream)
    flat = upstream.flatten(0, 1)
    check("linear input gradient", x.grad, _mm(flat, w).view_as(x))
    check("linear weight gradient", w.grad, _mm(flat.T, x.flatten(0, 1)))
    check("linear bias gradient", bias.grad, flat.double().sum(0))
    y = torch.full((5,), 0.3).requires_grad_()
    (y.exp() + y.log() + y.tanh() + y.sqrt() + torch.erf(y)).sum().backward()
    v = 0.3
    slope = math.exp(v) + 1 / v + 1 - math.tanh(v) ** 2 + 0.5 / math.sqrt(v) + 2 / math.sqrt(math.pi) * math.exp(-v * v)
    check("elementwise gradients", y.grad, torch.full((5,), slope))


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None
) -> Tensor:
    """softmax(q kᵀ scale + mask) v"""
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)


def attention() -> None:
    """Forward and backward, with each kind of mask, and tensors cut from one projection as in the model."""
    draw = torch.Generator().manual_seed(3)
    for T in ATTENTION_LENGTHS:
        lower = torch.ones(T, T, dtype=torch.bool).tril(2)
        masks = {"no mask": None, "causal": None, "bool mask": lower, "float mask": torch.randn(T, T, generator=draw)}
        for kind, mask in masks.items():
            for B, H in ((2, 2), (1, 3)):
                D = 4
                packed = torch.randn(B, T, 3 * H * D, generator=draw).requires_grad_()
                q, k, v = (x.view(B, T, H, D).transpose(1, 2) for x in packed.split(H * D, dim=2))
                upstream = torch.randn(B, H, T, D, generator=draw)
                options = dict(is_causal=kind == "causal", scale=0.3 if kind == "float mask" else None)
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
                (gradient,) = torch.autograd.grad(out, packed, upstream)
                wide = packed.detach().double().requires_grad_()
                q, k, v = (x.view(B, T, H, D).transpose(1, 2) for x in wide.split(H * D, dim=2))
                wanted = explicit_attention(q, k, v, options["is_causal"], mask, options["scale"])
                (wanted_gradient,) = torch.autograd.grad(wanted, wide, upstream.double())
                name = f"{kind} B={B} H={H} T={T}"
                check(f"attention {name}", out, wanted, 2e-5)
                check(f"attention gradient {name}", gradient, wanted_gradient, 5e-5)
    q = torch.randn(2, 2, 1, 8, generator=draw)  # a new token over a cache
    k, v = torch.randn(2, 2, 2, 50, 8, generator=draw).unbind()
    with torch.inference_mode():
        check("attention of one query", F.scaled_dot_product_attention(q, k, v),
              explicit_attention(q.double(), k.double(), v.double(), False, None, None))  # fmt: skip
        seen = torch.ones(2, 1, 1, 50, dtype=torch.bool)
        seen[1, ..., :20] = False
        check("attention of one query over padding", F.scaled_dot_product_attention(q, k, v, attn_mask=seen),
              explicit_attention(q.double(), k.double(), v.double(), False, seen, None))  # fmt: skip
    q, k, v = torch.randn(3, 2, 2, 33, 8, generator=draw).bfloat16().unbind()
    check("attention bfloat16", F.scaled_dot_product_attention(q, k, v, is_causal=True),
          explicit_attention(q.double(), k.double(), v.double(), True, None, None), 2e-2)  # fmt: skip


def gelu() -> None:
    """Both forms with their gradients, small and large enough for two threads, and not contiguous."""
    draw = torch.Generator().manual_seed(4)
    inputs = {
        "small": torch.randn(5, 7, generator=draw) * 3, "large": torch.randn(300, 1000, generator=draw) * 3,
        "transposed": torch.randn(7, 5, generator=draw).T, "empty": torch.zeros(0, 4),
        "tails": torch.tensor([-60.0, -20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 60.0]),
    }  # fmt: skip
    for form in ("tanh", "none"):
        for name, values in inputs.items():
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                x = values.detach().to(dtype).requires_grad_()
                upstream = torch.randn(values.shape, generator=draw).to(dtype)
                F.gelu(x, approximate=form).backward(upstream)
                wide = x.detach().double().requires_grad_()
                if form == "tanh":
                    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
                    wanted = 0.5 * wide * (1 + references["tanh"](inner))
                else:
                    wanted = 0.5 * wide * (1 + references["erf"](wide / math.sqrt(2)))
                wanted.backward(upstream.double())
                label = f"gelu {form} {name} {dtype}"
                tolerance = max(tolerance_of(dtype), 1e-9)
                check(label, F.gelu(x, approximate=form), wanted, tolerance)
                check(f"{label} gradient", x.grad, wide.grad, tolerance)


def inputs_of(name: str) -> Tensor:
    """Numbers in the function's domain, and special ones."""
    positive = name in ("log", "log2", "log10", "sqrt", "lgamma")
    unit = name in ("acos", "asin", "erfinv")
    points = torch.linspace(0.01, 20, 777) if positive else torch.linspace(-0.99, 0.99, 777) * (1 if unit else 6)
    if name == "lgamma":  # at -inf, SciPy gives -inf and PyTorch inf
        return torch.cat((points, SPECIAL[~torch.isneginf(SPECIAL)], points[:1]))
    return torch.cat((points, SPECIAL))


def elementwise() -> None:
    """Every function of `ELEMENTWISE`: in float32 and float64, in place, into `out`, and of other layouts."""
    for name, wanted in references["elementwise"].items():
        x = inputs_of(name)
        function: Callable[..., Tensor] = getattr(torch.special if name in ("erfinv",) else torch, name)
        check(f"{name} float32", function(x), wanted["float64"], 2e-5)
        check(f"{name} float64", function(x.double()), wanted["float64"], 1e-9)
        check(f"{name} bfloat16", function(x.bfloat16()), wanted["bfloat16"], 1e-2)
        check(f"{name}_", getattr(aten, f"{name}_")(x.clone()), wanted["float64"], 2e-5)
        check(f"{name}.out", function(x, out=torch.empty(0)), wanted["float64"], 2e-5)
        square = x[-780:].view(26, 30)
        check(f"{name} transposed", function(square.T), wanted["float64"][-780:].view(26, 30).T, 2e-5)
        check(f"{name} strided", function(x[::3]), wanted["float64"][::3], 2e-5)
        check(f"{name} expanded", function(x[:5, None].expand(5, 4)), wanted["float64"][:5, None].expand(5, 4), 2e-5)
        check(f"{name} two threads", function(x.repeat(100, 1)), wanted["float64"].repeat(100, 1), 2e-5)
        check(f"{name} empty", function(x[:0]), x[:0])
        check(f"{name} scalar", function(x[3]), wanted["float64"][3], 2e-5)
        check(f"{name} of integers", function(torch.tensor([0, 1])), wanted["integers"], 2e-5)
        if function(torch.tensor([0, 1])).dtype != torch.float32:
            failures[f"{name} of integers"] = "is not float32"


def modes() -> None:
    """Inference mode, a frozen input, and errors that PyTorch raises."""
    a, b = torch.arange(12.0).view(3, 4), torch.arange(8.0).view(4, 2)
    with torch.inference_mode():
        check("inference mode", torch.addmm(torch.ones(2), a, b), _mm(a, b) + 1)
        check("inference mode gelu", F.gelu(a, approximate="tanh"), a, 0.3)
    with torch.no_grad():
        check("no_grad", a @ b.requires_grad_(), _mm(a, b))
    for name, call in {
        "mm of other sizes": lambda: a @ a,
        "addmm of other sizes": lambda: torch.addmm(torch.ones(5), a, b),
    }.items():
        try:
            call()
        except (RuntimeError, ValueError):
            continue
        failures[name] = "no error"


def fork() -> None:
    """A forked process computes on two threads again, and the same bits."""
    a = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(5))
    wanted, wanted_exp = a @ a, a.exp()
    child = os.fork()
    if child == 0:
        same = torch.equal(a @ a, wanted) and torch.equal(a.exp(), wanted_exp)
        threads = threading.active_count()
        os._exit(0 if same and threads == 2 else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        status = -1
    if status:
        failures["fork"] = f"status {status}: the child stopped, or computed other bits"
    check("after fork", a @ a, wanted, 0)


def threads() -> None:
    """BLAS divides a large product only, and none while the second core is in use."""
    from gpt2core.numerics import kernels

    global n_checks
    used, matmul = [], np.matmul

    def counting(*arguments: Any, **options: Any) -> Any:
        used.append(kernels._second_thread._blas.get_num_threads())
        return matmul(*arguments, **options)

    small, large = torch.ones(64, 64), torch.ones(256, 256)
    with mock.patch.object(np, "matmul", counting):
        for matrix in (small, large, small):
            matrix @ matrix
        with numerics.one_thread():
            large @ large
    n_checks += 1
    if used != [1, 2, 1, 1]:
        failures["threads"] = str(used)


def main() -> None:
    global n_checks
    from gpt2core.numerics.kernels import ELEMENTWISE

    # PyTorch's own kernels in float64 are the references.
    references["elementwise"] = {}
    for name in ELEMENTWISE:
        function = getattr(torch, name)
        x = inputs_of(name)
        references["elementwise"][name] = {
            "float64": function(x.double()),
            "bfloat16": function(x.bfloat16().double()),
            "integers": function(torch.tensor([0.0, 1.0], dtype=torch.float64)),
        }
    # Functions that are not replaced.
    references["tanh"] = lambda x: torch.sigmoid(2 * x) * 2 - 1
    references["erf"] = lambda x: 1 - 2 * torch.special.ndtr(-x * math.sqrt(2))
    numerics.start("portable")
    groups: dict[str, Callable[[], None]] = {
        **{f"products {dtype}": lambda dtype=dtype: products(dtype) for dtype in  # type: ignore[misc]
           (torch.float32, torch.float64, torch.bfloat16)},
        "gradients": gradients, "attention": attention, "gelu": gelu, "elementwise": elementwise, "modes": modes,
        "threads": threads, "fork": fork,
    }  # fmt: skip
    report = {}
    for name, group in groups.items():
        n_checks = 0
        failures.clear()
        try:
            group()
        except Exception as error:
            failures["raised"] = f"{type(error).__name__}: {error}"
            if "-v" in sys.argv:
                raise
        report[name] = {"n_checks": n_checks, "failures": dict(failures)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
