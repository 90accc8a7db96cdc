"""CPU kernels with the same bytes on every CPU with AVX2, in place of PyTorch's kernels without this property.

PyTorch computes matrix products and the functions in `ELEMENTWISE` with MKL, which has other code for Intel's CPUs than
for AMD's, whatever `MKL_CBWR` says. NumPy computes matrix products with OpenBLAS, which runs the code that
`OPENBLAS_CORETYPE` names, and is as fast. `install` registers the kernels of this module with PyTorch's dispatcher for
CPU tensors: forward and backward passes, optimizers and generation use them, and no model code changes.

Shapes: B batch, H heads, T queries, S keys, D head size, N = B * H.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt2core.numerics import mode

HALF = (torch.bfloat16, torch.float16)
MIN_ELEMENTS = 1 << 16  # of what two threads share; less takes less time than waking the second one
MIN_FLOP = 1 << 24  # the same for a batch of matrix products
# The same for one product, which BLAS divides: waiting for its second thread takes 10 µs on an idle machine, 2 ms on a
# busy one.
MIN_BLAS_FLOP = 1 << 22
QUERY_BLOCK = 128  # queries of causal attention that are computed together, over the keys that they may see

# MKL's vector functions, and the functions of NumPy and SciPy that replace them.
ELEMENTWISE = {
    "acos": "numpy.arccos", "asin": "numpy.arcsin", "atan": "numpy.arctan", "cos": "numpy.cos", "exp": "numpy.exp",
    "log": "numpy.log", "log10": "numpy.log10", "log1p": "numpy.log1p", "log2": "numpy.log2", "sin": "numpy.sin",
    "sqrt": "numpy.sqrt", "tan": "numpy.tan", "tanh": "numpy.tanh", "erf": "scipy.special.erf",
    "erfc": "scipy.special.erfc", "erfinv": "scipy.special.erfinv", "lgamma": "scipy.special.gammaln",
}  # fmt: skip

_library: torch.library.Library | None = None  # the kernels are registered as long as it lives
_second_thread: _SecondThread


def install() -> None:
    """Register the kernels for all CPU tensors of this process."""
    global _library, _second_thread
    if _library is not None:
        return
    _second_thread = _SecondThread()
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        for name in ("mm", "bmm", "mv", "dot"):
            _register(name, _product)
        for name in ("addmm", "baddbmm", "addmv"):
            _register(name, _add_product, in_place=True)
        for name, function in ELEMENTWISE.items():
            _register(name, _elementwise(function), in_place=True)
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
    """Return the tensor for a result of this shape: `out` if it is given, else a new one."""
    if out is None:
        return like.new_empty(shape)
    return out if out.shape == shape else out.resize_(shape)


# -- Two threads -----------------------------------------------------------------------------------------------------


class _SecondThread:
    """A thread that computes half of an operation.

    What is divided, and where, depends on shapes alone, so it does not matter which thread computes a part: while the
    second thread is busy, `share` computes both parts where it is called. NumPy's BLAS has a second thread of its own,
    which costs less for a single product; it gets the core while this thread is not busy (`lent_to_blas`).
    """

    def __init__(self, is_fork: bool = False) -> None:
        self._blas = mode.numpy_blas()
        self._is_fork = is_fork  # where BLAS's second thread would have to be started again
        self._tasks: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...], SimpleQueue[Any]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_started = False  # when it is first needed: a forked process has no threads, and may need none

    def _run(self) -> None:
        while True:
            work, arguments, reply = self._tasks.get()
            try:
                work(*arguments)
                reply.put(None)
            except BaseException as error:
                reply.put(error)

    def share(self, work: Callable[..., object], first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        """Call `work` with the first arguments here and with the second ones on the other thread; wait for both."""
        if self._lock.locked():
            work(*first)
            work(*second)
            return
        with self.reserved():
            if not self._is_started:
                threading.Thread(target=self._run, name="numerics", daemon=True).start()
                self._is_started = True
            reply: SimpleQueue[BaseException | None] = SimpleQueue()  # its own: an interrupt may leave one unread
            self._tasks.put((work, second, reply))
            try:
                work(*first)
            finally:
                error = reply.get()
        if error is not None:
            raise error

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Prevent other use of the second core."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def lent_to_blas(self) -> Iterator[None]:
        """Let BLAS divide products between two threads, unless the second core is in use."""
        if self._is_fork or not self._lock.acquire(blocking=False):
            yield
            return
        try:
            self._blas.set_num_threads(2)
            yield
        finally:
            self._blas.set_num_threads(1)
            self._lock.release()


def _after_fork() -> None:
    """Replace the second thread in a forked process, which inherits none."""
    global _second_thread
    if _library is not None:
        _second_thread = _SecondThread(is_fork=True)


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute both parts of a divided operation on this thread. The bytes are the same."""
    with _second_thread.reserved():
        yield


# -- Matrix products -------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return a @ b of matrices, vectors, or batches of matrices; 16-bit floats are multiplied and added in float32."""
    out = _out(out, a, a.shape[:-1] + b.shape[b.dim() - 1 :] if b.dim() > 1 else a.shape[:-1])
    if a.dtype in HALF:
        return out.copy_(_product(a.float(), b.float()))
    _multiply(_array(a), _array(b), out.detach().numpy())
    return out


def _add_product(
    c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Tensor:
    """Return beta * c + alpha * (a @ b); with beta = 0, c is not read."""
    if a.dtype in HALF:
        result = _product(a, b).mul_(alpha)
        if beta != 0:
            result.add_(c, alpha=beta)
    else:
        result = a.new_empty(a.shape[:-1] + b.shape[b.dim() - 1 :] if b.dim() > 1 else a.shape[:-1])
        added = c.detach().expand(result.shape).numpy() if beta != 0 else None
        _multiply(_array(a), _array(b), result.numpy(), alpha, added, beta)
    return result if out is None else _out(out, result, result.shape).copy_(result)


def _multiply(
    a: np.ndarray, b: np.ndarray, out: np.ndarray,
    alpha: float = 1, c: np.ndarray | None = None, beta: float = 1,
) -> None:  # fmt: skip
    """Write alpha * (a @ b) + beta * c to `out`. Two threads compute half of a batch, or of a large product, each."""
    flop = 2 * out.size * a.shape[-1]
    n_products = len(out) if out.ndim == 3 else 1
    if flop == 0:
        out[...] = 0 if c is None else beta * c
    elif n_products > 1 and flop >= MIN_FLOP:
        half = len(out) // 2
        first, second = (
            (a[part], b[part], out[part], alpha, None if c is None else c[part], beta)
            for part in (slice(0, half), slice(half, None))
        )
        _second_thread.share(_multiply_here, first, second)
    elif flop // n_products >= MIN_BLAS_FLOP:
        with _second_thread.lent_to_blas():
            _multiply_here(a, b, out, alpha, c, beta)
    else:
        _multiply_here(a, b, out, alpha, c, beta)


def _multiply_here(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, alpha: float, c: np.ndarray | None, beta: float
) -> None:
    """Write alpha * (a @ b) + beta * c to `out` on this thread, and on BLAS's if it has the second core."""
    np.matmul(a, b, out=out)
    if alpha != 1:
        np.multiply(out, out.dtype.type(alpha), out=out)
    if c is not None:
        np.add(out, c if beta == 1 else c * out.dtype.type(beta), out=out)


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array that BLAS reads without a copy: rows or columns without gaps, not repeated."""
    if tensor.dim() > 1:
        (rows, columns), (row_stride, column_stride) = tensor.shape[-2:], tensor.stride()[-2:]
        by_rows = column_stride == 1 and row_stride >= columns
        by_columns = row_stride == 1 and column_stride >= rows
        if not (by_rows or by_columns):
            tensor = tensor.contiguous()
    return tensor.detach().numpy()


# -- Functions of each element ---------------------------------------------------------------------------------------


def _elementwise(path: str) -> Callable[..., Tensor]:
    """Return the kernel of a NumPy or SciPy function, named by its path; SciPy is imported when it is first needed."""
    module, _, name = path.rpartition(".")

    def kernel(tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
        if not tensor.dtype.is_floating_point:
            tensor = tensor.to(torch.get_default_dtype())
        out = _out(out, tensor, tensor.shape)
        if tensor.dtype in HALF:
            return out.copy_(kernel(tensor.float()))
        function = getattr(np if module == "numpy" else _scipy_special(), name)
        x, y = tensor.detach().numpy(), out.detach().numpy()
        if x.size < MIN_ELEMENTS or len(x) == 1:
            _apply(function, x, y)
        else:
            half = len(x) // 2
            _second_thread.share(_apply, (function, x[:half], y[:half]), (function, x[half:], y[half:]))
        return out

    return kernel


def _apply(function: np.ufunc, x: np.ndarray, out: np.ndarray) -> None:
    with np.errstate(all="ignore"):  # as PyTorch, which gives log(0) = -inf without a warning
        function(x, out=out)


def _scipy_special() -> Any:
    import scipy.special

    return scipy.special


# GELU's tanh form is x σ(z) with z = x (GELU_LINEAR + GELU_CUBIC x²), since (1 + tanh u) / 2 = σ(2u). With AVX2,
# PyTorch's σ takes a quarter of the time of its tanh, and like it is the same on every CPU.
GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR
GELU_CHUNK = 1 << 17  # elements that go through all steps while they are in the cache


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return x Φ(x), or with `approximate="tanh"` GPT-2's form of it, on two threads."""
    if approximate != "tanh" or x.dtype in HALF:
        return torch.ops.aten.gelu.out(x, approximate=approximate, out=torch.empty_like(x))
    x = x.contiguous()
    out = torch.empty_like(x)
    _in_halves(_gelu_into, x, out)
    return out


@torch.inference_mode()
def _gelu_into(x: Tensor, out: Tensor) -> None:
    for a, y in zip(x.split(GELU_CHUNK), out.split(GELU_CHUNK), strict=True):
        torch.mul(a, a, out=y)
        y.mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(a).sigmoid_().mul_(a)


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """Return the gradient of `_gelu`: σ + x σ (1 - σ) dz/dx, times `grad`."""
    if approximate != "tanh" or x.dtype in HALF:
        return torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=torch.empty_like(x))
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    _in_halves(_gelu_backward_into, grad, x, out)
    return out


@torch.inference_mode()
def _gelu_backward_into(grad: Tensor, x: Tensor, out: Tensor) -> None:
    for g, a, y in zip(grad.split(GELU_CHUNK), x.split(GELU_CHUNK), out.split(GELU_CHUNK), strict=True):
        sigma = a * a
        slope = sigma * (3 * GELU_CUBIC) + GELU_LINEAR  # dz/dx
        sigma.mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(a).sigmoid_()
        torch.neg(sigma, out=y)
        y.add_(1).mul_(a).mul_(slope).add_(1).mul_(sigma).mul_(g)


def _in_halves(work: Callable[..., None], *tensors: Tensor) -> None:
    """Call `work` with both halves of contiguous tensors, on two threads where that pays."""
    flat = [tensor.detach().view(-1) for tensor in tensors]
    half = len(flat[0]) // 2
    if len(flat[0]) < MIN_ELEMENTS:
        work(*flat)
    else:
        _second_thread.share(work, tuple(t[:half] for t in flat), tuple(t[half:] for t in flat))


# -- Attention -------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Queries that are computed together: the first, the end, and how many keys they may see."""

    start: int
    end: int
    n_keys: int


Part = tuple[slice, slice]  # some of the rows and of the heads


def _attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q kᵀ scale + mask) v, from queries [B, H, T, D], keys and values [B, H, S, D], on two threads.

    Returns:
        The output [B, H, T, D] and, in place of PyTorch's logarithms of sums, the attention weights, flat: only
        `_attention_backward` reads them. Without a gradient they are not saved.
    """
    (B, H, T, D), S = query.shape, key.shape[2]
    q, k, v = (_wide(tensor) for tensor in (query, key, value))
    out = q.new_empty(B, T, H, D).transpose(1, 2)  # so that the heads of a position are next to each other
    blocks = _blocks(T, S, is_causal)
    flat_weights = q.new_empty(B * H * sum(map(_size, blocks)) if torch.is_grad_enabled() else 0)
    weights = _weights_of_blocks(flat_weights, B, H, blocks) if len(flat_weights) else None
    mask = None if attn_mask is None else attn_mask.expand(B, H, T, S)
    _for_parts(B, H, _attend, q, k, v, out, weights, mask, blocks, is_causal, _scale(scale, D))
    return out.to(query.dtype), flat_weights


@torch.inference_mode()
def _attend(
    part: Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: list[Tensor] | None, mask: Tensor | None,
    blocks: list[_Block], is_causal: bool, scale: float,
) -> None:  # fmt: skip
    """Write `out`, and `weights` where they are kept, of a part of rows and heads."""
    queries, keys, values = _array(q[part] * scale), _array(k[part]), _array(v[part])
    results = out[part].numpy()
    for number, (start, end, n_keys) in enumerate(blocks):
        p = weights[number][part] if weights else q.new_empty(*results.shape[:2], end - start, n_keys)
        np.matmul(queries[:, :, start:end], keys[:, :, :n_keys].swapaxes(2, 3), out=p.numpy())
        if is_causal:  # all of these queries see the keys before the block
            own = p[..., start:]
            own.masked_fill_(torch.ones(own.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
        if mask is not None:
            p.add_(mask[part][:, :, start:end, :n_keys])
        torch.softmax(p, -1, out=p)
        np.matmul(p.numpy(), values[:, :, :n_keys], out=results[:, :, start:end])


def _attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, flat_weights: Tensor,
    dropout_p: float, is_causal: bool, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key, and value: [B, H, T or S, D] each."""
    (B, H, T, D), S = query.shape, key.shape[2]
    grad, q, k, v = (_wide(tensor) for tensor in (grad_out, query, key, value))
    gradients = q.new_empty(B, H, T, D), q.new_zeros(B, H, S, D), q.new_zeros(B, H, S, D)
    blocks = _blocks(T, S, is_causal)
    weights = _weights_of_blocks(flat_weights, B, H, blocks)
    _for_parts(B, H, _attend_backward, grad, q, k, v, weights, gradients, blocks, _scale(scale, D))
    grad_q, grad_k, grad_v = (gradient.to(query.dtype) for gradient in gradients)
    return grad_q, grad_k, grad_v


@torch.inference_mode()
def _attend_backward(
    part: Part, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: list[Tensor],
    gradients: tuple[Tensor, ...], blocks: list[_Block], scale: float,
) -> None:  # fmt: skip
    """Write the gradients of a part of rows and heads."""
    grads, queries, keys, values = (_array(tensor[part]) for tensor in (grad, q, k, v))
    grad_q, grad_k, grad_v = (gradient[part].numpy() for gradient in gradients)
    for (start, end, n_keys), all_weights in zip(blocks, weights, strict=True):
        p = all_weights[part]
        own = grads[:, :, start:end]
        grad_p = torch.empty_like(p)
        grad_v[:, :, :n_keys] += p.numpy().swapaxes(2, 3) @ own
        np.matmul(own, values[:, :, :n_keys].swapaxes(2, 3), out=grad_p.numpy())
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale).numpy()
        np.matmul(grad_scores, keys[:, :, :n_keys], out=grad_q[:, :, start:end])
        grad_k[:, :, :n_keys] += grad_scores.swapaxes(2, 3) @ queries[:, :, start:end]


def _for_parts(n_rows: int, n_heads: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` with each half of the rows, or of the heads of a single row, on two threads."""
    everything, half = slice(None), max(n_rows, n_heads if n_rows == 1 else 0) // 2
    halves = slice(0, half), slice(half, None)
    first, second = ((part, everything) if n_rows > 1 else (everything, part) for part in halves)
    if half:
        _second_thread.share(work, (first, *arguments), (second, *arguments))
    else:
        work((everything, everything), *arguments)


def _blocks(n_queries: int, n_keys: int, is_causal: bool) -> list[_Block]:
    """Return one block of all queries; for causal attention several, without the keys that come after them."""
    if not is_causal:
        return [_Block(0, n_queries, n_keys)]
    starts = range(0, n_queries, QUERY_BLOCK)
    ends = [min(start + QUERY_BLOCK, n_queries) for start in starts]
    return [_Block(start, end, min(end, n_keys)) for start, end in zip(starts, ends, strict=True)]


def _size(block: _Block) -> int:
    return (block.end - block.start) * block.n_keys


def _weights_of_blocks(flat_weights: Tensor, n_rows: int, n_heads: int, blocks: list[_Block]) -> list[Tensor]:
    """Return views of the weights of each block: [B, H, T of the block, S of the block]."""
    parts = flat_weights.split([n_rows * n_heads * _size(block) for block in blocks])
    return [part.view(n_rows, n_heads, b.end - b.start, b.n_keys) for part, b in zip(parts, blocks, strict=True)]


def _wide(tensor: Tensor) -> Tensor:
    """Return 16-bit floats as float32, others as they are."""
    return tensor.detach().float() if tensor.dtype in HALF else tensor.detach()


def _scale(scale: float | None, head_size: int) -> float:
    return head_size**-0.5 if scale is None else scale
