"""CPU kernels that give the same bytes on every CPU with AVX2, in place of those of PyTorch that do not.

PyTorch hands matrix products and the functions in `ELEMENTWISE` to MKL, which has other code for Intel's CPUs than for
AMD's, whatever `MKL_CBWR` says. NumPy hands matrix products to OpenBLAS, which runs the code that `OPENBLAS_CORETYPE`
names, and is as fast. `install` registers the kernels of this module with PyTorch's dispatcher for CPU tensors: forward
and backward passes, optimizers and generation use them, and no model code changes.

Shapes: B batch, H heads, T queries, S keys, D head size, N = B * H.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
MIN_FLOP = 1 << 23  # of a product on two threads; a smaller one takes less time than waking the second thread
MIN_ELEMENTS = 1 << 16  # likewise of a function of each element
QUERY_BLOCK = 128  # queries of causal attention that are computed together, over the keys that they may see

# MKL's vector functions, and the functions of NumPy and SciPy that replace them.
ELEMENTWISE = {
    "acos": "numpy.arccos", "asin": "numpy.arcsin", "atan": "numpy.arctan", "cos": "numpy.cos", "exp": "numpy.exp",
    "log": "numpy.log", "log10": "numpy.log10", "log1p": "numpy.log1p", "log2": "numpy.log2", "sin": "numpy.sin",
    "sqrt": "numpy.sqrt", "tan": "numpy.tan", "tanh": "numpy.tanh", "erf": "scipy.special.erf",
    "erfc": "scipy.special.erfc", "erfinv": "scipy.special.erfinv", "lgamma": "scipy.special.gammaln",
}  # fmt: skip

_library: torch.library.Library | None = None  # the kernels are registered as long as it lives


def install() -> None:
    """Register the kernels for all CPU tensors of this process."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _register_all()


def _register_all() -> None:
    for name in ("mm", "bmm", "mv", "dot"):
        _register(name, _product)
    for name in ("addmm", "baddbmm", "addmv"):
        _register(name, _add_product, in_place=True)
    for name, function in ELEMENTWISE.items():
        _register(name, _elementwise(function), in_place=True)
    assert _library is not None
    _library.impl("_scaled_dot_product_flash_attention_for_cpu", _attention, "CPU")
    _library.impl("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward, "CPU")
    _library.impl("gelu", _gelu, "CPU")
    _library.impl("gelu_backward", _gelu_backward, "CPU")


def _register(name: str, kernel: Callable[..., Tensor], in_place: bool = False) -> None:
    """Register a kernel that takes `out` for an operator and its variants."""
    assert _library is not None
    _library.impl(name, kernel, "CPU")
    _library.impl(f"{name}.out", kernel, "CPU")
    if in_place:
        _library.impl(f"{name}_", lambda tensor, *rest, **options: kernel(tensor, *rest, out=tensor, **options), "CPU")


def _out(out: Tensor | None, like: Tensor, shape: torch.Size) -> Tensor:
    """Where to write a result of this shape: `out` if it is given, else a new tensor."""
    if out is None:
        return like.new_empty(shape)
    return out if out.shape == shape else out.resize_(shape)


# -- Two threads -----------------------------------------------------------------------------------------------------


class _SecondThread:
    """A thread that computes half of an operation. Two queues hand over in 40 µs; a `ThreadPoolExecutor` takes 100."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()
        self._errors: SimpleQueue[BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()  # for processes that compute in several threads of their own
        threading.Thread(target=self._run, name="numerics", daemon=True).start()

    def _run(self) -> None:
        while True:
            work, arguments = self._tasks.get()
            try:
                work(*arguments)
                self._errors.put(None)
            except BaseException as error:
                self._errors.put(error)

    def share(self, work: Callable[..., object], first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        """Call `work` with the first arguments here and with the second ones on the other thread; wait for both."""
        with self._lock:
            self._tasks.put((work, second))
            try:
                work(*first)
            finally:
                error = self._errors.get()
        if error is not None:
            raise error


_second_thread = _SecondThread()


def _after_fork() -> None:
    """Start the second thread of a forked process, which inherits none."""
    global _second_thread
    _second_thread = _SecondThread()


os.register_at_fork(after_in_child=_after_fork)

# -- Matrix products -------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a @ b of matrices, of vectors, or of batches of matrices. 16-bit floats are multiplied and added in float32."""
    out = _out(out, a, a.shape[:-1] + b.shape[b.dim() - 1 :] if b.dim() > 1 else a.shape[:-1])
    if a.dtype in HALF:
        return out.copy_(_product(a.float(), b.float()))
    _multiply(a, b, out)
    return out


def _add_product(
    c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Tensor:
    """beta * c + alpha * (a @ b); with beta = 0, c is not read."""
    result = _product(a, b)
    if alpha != 1:
        result.mul_(alpha)
    if beta != 0:
        result.add_(c, alpha=beta)
    return result if out is None else _out(out, result, result.shape).copy_(result)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b to `out`, on two threads where that pays. Both compute half of the batch, rows or columns."""
    if out.numel() == 0 or a.shape[-1] == 0:
        out.zero_()
        return
    x, y, z = _array(a), _array(b), out.detach().numpy()
    if z.ndim < 2 or 2 * z.size * x.shape[-1] < MIN_FLOP:
        np.matmul(x, y, out=z)
    elif z.ndim == 3 and len(z) > 1:
        half = len(z) // 2
        _second_thread.share(np.matmul, (x[:half], y[:half], z[:half]), (x[half:], y[half:], z[half:]))
    elif z.shape[-2] >= z.shape[-1]:
        half = z.shape[-2] // 2
        _second_thread.share(
            np.matmul, (x[..., :half, :], y, z[..., :half, :]), (x[..., half:, :], y, z[..., half:, :])
        )
    else:
        half = z.shape[-1] // 2
        _second_thread.share(np.matmul, (x, y[..., :half], z[..., :half]), (x, y[..., half:], z[..., half:]))


def _matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b to `out` on this thread, and return it."""
    np.matmul(_array(a), _array(b), out=out.numpy())
    return out


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor as an array that BLAS reads as it is: rows or columns without gaps, and not repeated."""
    if tensor.dim() > 1:
        (rows, columns), (row_stride, column_stride) = tensor.shape[-2:], tensor.stride()[-2:]
        by_rows = column_stride == 1 and row_stride >= columns
        by_columns = row_stride == 1 and column_stride >= rows
        if not (by_rows or by_columns):
            tensor = tensor.contiguous()
    return tensor.detach().numpy()


# -- Functions of each element ---------------------------------------------------------------------------------------


def _elementwise(path: str) -> Callable[..., Tensor]:
    """The kernel of a NumPy or SciPy function, named by its path. SciPy is imported when it is first needed."""
    module, _, name = path.rpartition(".")

    def kernel(tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
        if not tensor.dtype.is_floating_point:
            tensor = tensor.to(torch.get_default_dtype())
        out = _out(out, tensor, tensor.shape)
        if tensor.dtype in HALF:
            return out.copy_(kernel(tensor.float()))
        function = getattr(np if module == "numpy" else _scipy_special(), name)
        with np.errstate(all="ignore"):  # as PyTorch, which gives log(0) = -inf without a warning
            function(tensor.detach().numpy(), out=out.detach().numpy())
        return out

    return kernel


def _scipy_special() -> Any:
    import scipy.special

    return scipy.special


@torch.inference_mode()
def _gelu_into(x: Tensor, out: Tensor, approximate: str) -> None:
    torch.ops.aten.gelu.out(x, approximate=approximate, out=out)


@torch.inference_mode()
def _gelu_backward_into(grad: Tensor, x: Tensor, out: Tensor, approximate: str) -> None:
    torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=out)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """PyTorch's own kernel, on two threads."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _in_halves(_gelu_into, (x, out), approximate)
    return out


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """The gradient of `_gelu`."""
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    _in_halves(_gelu_backward_into, (grad, x, out), approximate)
    return out


def _in_halves(work: Callable[..., None], tensors: tuple[Tensor, ...], *options: Any) -> None:
    """Call `work` with both halves of contiguous tensors, on two threads where that pays."""
    flat = [tensor.view(-1) for tensor in tensors]
    half = len(flat[0]) // 2
    if len(flat[0]) < MIN_ELEMENTS:
        work(*flat, *options)
    else:
        _second_thread.share(work, (*(t[:half] for t in flat), *options), (*(t[half:] for t in flat), *options))


# -- Attention -------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Queries that are computed together: the first, the end, and how many keys they may see."""

    start: int
    end: int
    n_keys: int


def _attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q kᵀ scale + mask) v. Each thread computes half of the heads of all rows.

    Returns:
        The output [B, H, T, D] and, in place of PyTorch's logarithms of sums, the attention weights, flat: only
        `_attention_backward` reads them. Without a gradient they are not kept.
    """
    shape = query.shape  # [B, H, T, D]
    q, k, v = (_heads(tensor) for tensor in (query, key, value))  # [N, T or S, D] with N = B * H
    q = q * _scale(scale, shape[-1])
    out = torch.empty_like(q)
    blocks = _blocks(shape[2], key.shape[2], is_causal)
    kept = q.new_empty(len(q) * sum(map(_size, blocks)) if torch.is_grad_enabled() else 0)
    weights = _weights_of_blocks(kept, len(q), blocks) if len(kept) else None
    mask = None if attn_mask is None else attn_mask.expand(*shape[:3], key.shape[2]).flatten(0, 1)  # [N, T, S]
    _for_parts(len(q), _attend, q, k, v, out, weights, mask, blocks, is_causal)
    return out.view(shape).to(query.dtype), kept


@torch.inference_mode()
def _attend(
    part: slice, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: list[Tensor] | None, mask: Tensor | None,
    blocks: list[_Block], is_causal: bool,
) -> None:  # fmt: skip
    """Write `out` [N, T, D], and `weights` where they are kept, of the heads in `part`."""
    q, k, v, out = q[part], k[part], v[part], out[part]
    for number, (start, end, n_keys) in enumerate(blocks):
        p = weights[number][part] if weights else q.new_empty(len(q), end - start, n_keys)
        _matmul(q[:, start:end], k[:, :n_keys].mT, p)
        if is_causal:  # all of these queries see the keys before the block
            own = p[..., start:]
            own.masked_fill_(torch.ones(own.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        if mask is not None:
            p.add_(mask[part, start:end, :n_keys])
        torch.softmax(p, -1, out=p)
        _matmul(p, v[:, :n_keys], out[:, start:end])


def _attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, kept: Tensor,
    dropout_p: float, is_causal: bool, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value: [B, H, T or S, D] each."""
    grad, q, k, v = (_heads(tensor) for tensor in (grad_out, query, key, value))
    gradients = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    blocks = _blocks(query.shape[2], key.shape[2], is_causal)
    weights = _weights_of_blocks(kept, len(q), blocks)
    _for_parts(len(q), _attend_backward, grad, q, k, v, weights, gradients, blocks)
    for gradient in gradients[:2]:
        gradient.mul_(_scale(scale, query.shape[-1]))
    grad_q, grad_k, grad_v = (
        gradient.view(like.shape).to(like.dtype) for gradient, like in zip(gradients, (query, key, value), strict=True)
    )
    return grad_q, grad_k, grad_v


@torch.inference_mode()
def _attend_backward(
    part: slice, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: list[Tensor],
    gradients: tuple[Tensor, ...], blocks: list[_Block],
) -> None:  # fmt: skip
    """Write the gradients [N, T or S, D] of the heads in `part`, without the factor `scale`."""
    grad, q, k, v = grad[part], q[part], k[part], v[part]
    grad_q, grad_k, grad_v = (gradient[part] for gradient in gradients)
    for (start, end, n_keys), all_heads in zip(blocks, weights, strict=True):
        p = all_heads[part]  # [n, T of the block, S of the block]
        grad_p, product = torch.empty_like(p), k.new_empty(len(k), n_keys, k.shape[2])
        grad_v[:, :n_keys] += _matmul(p.mT, grad[:, start:end], product)
        _matmul(grad[:, start:end], v[:, :n_keys].mT, grad_p)
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
        _matmul(grad_scores, k[:, :n_keys], grad_q[:, start:end])
        grad_k[:, :n_keys] += _matmul(grad_scores.mT, q[:, start:end], product)


def _for_parts(n: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` with each half of n heads, on two threads; with one head, on this one."""
    if n > 1:
        _second_thread.share(work, (slice(0, n // 2), *arguments), (slice(n // 2, n), *arguments))
    else:
        work(slice(0, n), *arguments)


def _blocks(n_queries: int, n_keys: int, is_causal: bool) -> list[_Block]:
    """All queries at once; of causal attention some at a time, without the keys that come after them."""
    if not is_causal:
        return [_Block(0, n_queries, n_keys)]
    ends = (min(start + QUERY_BLOCK, n_queries) for start in range(0, n_queries, QUERY_BLOCK))
    return [_Block((end - 1) // QUERY_BLOCK * QUERY_BLOCK, end, min(end, n_keys)) for end in ends]


def _size(block: _Block) -> int:
    return (block.end - block.start) * block.n_keys


def _weights_of_blocks(kept: Tensor, n: int, blocks: list[_Block]) -> list[Tensor]:
    """Views of the weights of each block: [n, T of the block, S of the block]."""
    parts = kept.split([n * _size(block) for block in blocks])
    return [part.view(n, b.end - b.start, b.n_keys) for part, b in zip(parts, blocks, strict=True)]


def _heads(tensor: Tensor) -> Tensor:
    """[B, H, T, D] -> [B * H, T, D], contiguous; 16-bit floats as float32."""
    wide = tensor.float() if tensor.dtype in HALF else tensor
    return wide.reshape(-1, *tensor.shape[2:]).contiguous()


def _scale(scale: float | None, head_size: int) -> float:
    return head_size**-0.5 if scale is None else scale
