"""The probe: small computations whose hashes are the same on every machine where `numerics: portable` holds.

`python -m gpt2core.numerics` prints the hashes of this machine, for HASHES after an intended change.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from gpt2core.errors import UserError

HASHES = {
    "numpy matrix product": "761e0d3ea19350bd",
    "numpy functions": "21264c76ac51c250",
    "python math": "d1c28bc3b0f9a64e",
    "scipy matrix product": "40219c27e9acbb93",
    "scipy functions": "0a6ab3fd7abe50b7",
    "torch matrix product": "0c8d15384db26fb3",
    "torch attention": "7c5247045768a433",
    "torch exp": "cf4a9838c74c0f08",
    "torch log": "bf148f41c05c3f43",
    "torch sqrt": "87afce79f18d2a7f",
    "torch erf": "b67b8b123db2966e",
    "torch logsumexp": "3425eb0a6263b9ee",
    "torch softmax": "dc2221d7fb83c1b1",
    "torch gelu": "1938fad50d880ae5",
    "torch layer norm": "1dd059d5c6315fff",
    "torch sum": "ebbbf89b94ba8ab6",
    "torch random numbers": "0164dcbb6e309131",
    "torch AdamW": "1f3fb12a13e7f217",
}

Results = Callable[[], Any]  # arrays, tensors, or lists of numbers


def check(with_torch: bool = True) -> None:
    """Compare this process with HASHES. SciPy is checked where it is loaded.

    Raises:
        UserError: an operation gives other bits; names it, and what may be the reason.
    """
    for operation, sha256 in hashes(with_torch, with_scipy="scipy.linalg" in sys.modules).items():
        if sha256 != HASHES[operation]:
            libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
            raise UserError(
                f"numerics: portable: {operation} gives other bits on this machine than it should ({libraries}). "
                "Install the versions of requirements.lock (make repro does), or take numerics: native in params.yaml, "
                "whose results are this machine's own"
            )


def hashes(with_torch: bool = True, with_scipy: bool = True) -> dict[str, str]:
    """Return the SHA-256 of each operation's result, 16 hexadecimal digits."""
    operations = _numpy_operations()
    if with_scipy:
        operations |= _scipy_operations()
    if with_torch:
        operations |= _torch_operations()
    digests = {}
    for name, results in operations.items():
        digest = hashlib.sha256()
        for result in results():
            digest.update(np.ascontiguousarray(result).tobytes())
        digests[name] = digest.hexdigest()[:16]
    return digests


def _numpy_operations() -> dict[str, Results]:
    x = _numbers(256, 64)
    positive = np.abs(x.astype(np.float64)) + 0.01
    functions = math.exp, math.log, math.cos, math.sqrt
    return {
        "numpy matrix product": lambda: (x @ x.T, x.T @ x.astype(np.float64)),
        "numpy functions": lambda: (np.exp(x), np.log(positive), x.sum(), x.std()),
        "python math": lambda: ([function(i / 7) for i in range(1, 99) for function in functions],),
    }


def _scipy_operations() -> dict[str, Results]:
    from scipy import special
    from scipy.linalg import blas

    x = _numbers(256, 64)
    return {
        "scipy matrix product": lambda: (blas.sgemm(1.0, x.T, x.T, trans_b=True),),
        "scipy functions": lambda: (special.expit(x), special.logsumexp(x, axis=1)),
    }


def _torch_operations() -> dict[str, Results]:
    import torch
    import torch.nn.functional as F

    x = torch.from_numpy(_numbers(8, 256, 64))  # [8, 256, 64]
    rows, positive = x[0], x[0].abs() + 0.01
    q, k, v = x[:6].view(3, 2, 4, 256, 16).unbind()
    logits = x[1].view(128, 128)

    def draws() -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1024, generator=generator), torch.empty(1024).bernoulli_(0.9, generator=generator)

    def adamw_step() -> tuple[Any, ...]:
        weight, moments = rows.clone(), [torch.zeros_like(rows), torch.zeros_like(rows)]
        torch._fused_adamw_(
            [weight], [positive], moments[:1], moments[1:], [], [torch.tensor(1.0)],
            lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        return weight, *moments

    return {
        "torch matrix product": lambda: (rows @ x[1].T, rows.T @ x[1], rows[:1] @ x[1].T, x @ x.mT),
        "torch attention": lambda: (F.scaled_dot_product_attention(q, k, v, is_causal=True),),
        "torch exp": lambda: (rows.exp(),),
        "torch log": lambda: (positive.log(),),
        "torch sqrt": lambda: (positive.sqrt(),),
        "torch erf": lambda: (rows.erf(),),
        "torch logsumexp": lambda: (rows.logsumexp(-1),),
        "torch softmax": lambda: (logits.softmax(-1), logits.log_softmax(-1)),
        "torch gelu": lambda: (F.gelu(rows, approximate="tanh"), F.gelu(rows)),
        "torch layer norm": lambda: (F.layer_norm(rows, (64,)),),
        "torch sum": lambda: (rows.sum(), rows.mean(0), rows.norm()),
        "torch random numbers": draws,
        "torch AdamW": adamw_step,
    }


def _numbers(*shape: int) -> np.ndarray:
    """Numbers from -4 to 4 without a pattern, each a multiple of 2^-16: the same on every machine."""
    mixed = np.arange(1, math.prod(shape) + 1, dtype=np.uint32) * np.uint32(2654435761)  # Knuth's hash
    return ((mixed >> 13).astype(np.float32) / np.float32(1 << 16) - np.float32(4)).reshape(shape)
