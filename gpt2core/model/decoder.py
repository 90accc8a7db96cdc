"""GPT-2's blocks in C, for decoding on a CPU: `decoder.c`, compiled for this machine when it is first used.

This needs Linux on x86-64 with AVX2, and gcc or another C compiler with OpenMP. Without them, `load` returns None, and
PyTorch's libraries compute instead. The compiled file is kept in ~/.cache/gpt2core; its name is a hash of the source,
the compiler, and the CPU's instructions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import Structure, c_float, c_int, c_long, c_void_p
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2core import environment
from gpt2core.log import logger
from gpt2core.model.kv_cache import KVCache
from gpt2core.model.quantized import int8_scales

SOURCE = Path(__file__).with_name("decoder.c")
# The compiler may divide sums among the lanes of a vector; infinities and NaN stay what they are.
FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
    "-freciprocal-math", "-fopenmp", "-fPIC", "-shared",
)  # fmt: skip
TIMEOUT_S = 120
VARIABLE = "GPT2CORE_COMPILED_DECODER"  # off: PyTorch's libraries
DTYPES = {"float32": 0, "bfloat16": 1, "int8": 2}  # as in `enum Dtype`
GROUPS = {"float32": 1, "bfloat16": 2, "int8": 4}  # inputs in 32 bits
LINEARS = ("c_attn", "attn_proj", "c_fc", "mlp_proj")
MAX_NEW_TOKENS = 16  # of a sequence; for more, PyTorch's attention is faster


class _Linear(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weights", "scales", "sums", "bias")),
        *((name, c_long) for name in ("n_in", "n_out")),
    )


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_float))


class _Block(Structure):
    _fields_ = (("ln_1", _Norm), ("ln_2", _Norm), *((name, _Linear) for name in LINEARS))


class _Cache(Structure):
    _fields_ = (("keys", c_void_p), ("values", c_void_p))


class _Shape(Structure):
    _fields_ = (*((name, c_long) for name in ("B", "T", "past", "H", "D", "cache_tokens")), ("mask", c_void_p))


class Decoder:
    """The compiled functions, the dtypes that this machine has the instructions for, and the outputs of a panel."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        self._run_linear, self._run_blocks = library.run_linear, library.run_blocks
        self._run_linear.argtypes = [c_int, c_int, c_void_p, c_void_p, c_long, c_void_p]
        self._run_blocks.argtypes = [c_int, c_int, c_void_p, c_long, c_void_p, c_void_p, c_void_p]
        self.dtypes = {name for name, number in DTYPES.items() if library.supported() >> number & 1}
        self.panel = int(library.panel_outputs())

    def run_linear(self, dtype: str, linear: _Linear, x: Tensor, y: Tensor) -> None:
        """Write x Wᵀ + b to y: [N, in] -> [N, out]."""
        arguments = ctypes.byref(linear), x.data_ptr(), len(x), y.data_ptr()
        if not self._run_linear(torch.get_num_threads(), DTYPES[dtype], *arguments):
            raise MemoryError

    def run_blocks(
        self, dtype: str, blocks: ctypes.Array[_Block], shape: _Shape, caches: ctypes.Array[_Cache], x: Tensor
    ) -> None:
        """Compute all blocks of x [N, C] in place; the caches get the keys and values."""
        arguments = blocks, len(blocks), ctypes.byref(shape), caches, x.data_ptr()
        if not self._run_blocks(torch.get_num_threads(), DTYPES[dtype], *arguments):
            raise MemoryError


class CompiledLinear:
    """A function that computes x Wᵀ + b with packed weights, for x [N, in] in float32."""

    def __init__(self, decoder: Decoder, weight: Tensor, bias: Tensor | None, dtype: str):
        self.decoder, self.dtype = decoder, dtype
        self._n_out, self._n_in = weight.shape
        scales = sums = None
        if dtype == "int8":
            scales = int8_scales(weight)  # [out]
            weight = (weight / scales[:, None]).round().to(torch.int8)
            sums = weight.sum(1, dtype=torch.int32)  # [out]
        else:
            weight = weight.to(getattr(torch, dtype))
        self._tensors = [_panels(weight, decoder.panel, GROUPS[dtype]), scales, sums, bias]
        self.struct = _Linear(*map(_pointer, self._tensors), self._n_in, self._n_out)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape != (len(x), self._n_in):
            raise ValueError(f"x: shape {tuple(x.shape)}; needed: [N, {self._n_in}]")
        x = x.float().contiguous()
        y = x.new_empty(len(x), self._n_out)
        self.decoder.run_linear(self.dtype, self.struct, x, y)
        return y


class CompiledBlocks:
    """All blocks of a model, for a few new tokens of each sequence.

    Args:
        n_head: attention heads.
        norms: the two norms of each block.
        linears: the linear layers of each block, by the names in `LINEARS`.
    """

    def __init__(
        self, n_head: int, norms: Sequence[Sequence[nn.LayerNorm]], linears: Sequence[Mapping[str, CompiledLinear]]
    ):
        self._n_head = n_head
        first = linears[0]["c_attn"]
        self._decoder, self._dtype = first.decoder, first.dtype
        self._kept: list[object] = [linears]  # what the pointers point to
        self._blocks = (_Block * len(linears))()
        for block, (ln_1, ln_2), named in zip(self._blocks, norms, linears, strict=True):
            block.ln_1, block.ln_2 = self._norm(ln_1), self._norm(ln_2)
            for name in LINEARS:
                setattr(block, name, named[name].struct)

    def _norm(self, layer: nn.LayerNorm) -> _Norm:
        tensors = [parameter.detach().float().contiguous() for parameter in (layer.weight, layer.bias)]  # [C]
        self._kept.append(tensors)
        return _Norm(*map(_pointer, tensors), layer.eps)

    def __call__(self, x: Tensor, B: int, cache: KVCache, mask: Tensor | None) -> Tensor:
        """Return the output of all blocks: [B * T, C] -> [B * T, C]; the cache gets the tokens' keys and values.

        Raises:
            ValueError: the cache is not of this model, too small, or not in float32.
        """
        N, C = x.shape
        T, past, H = N // B, cache.length, self._n_head
        expected = (len(self._blocks), (B, H, cache.max_tokens, C // H), torch.float32)
        keys = cache.layers[0].k
        if (len(cache.layers), tuple(keys.shape), keys.dtype) != expected or past + T > cache.max_tokens:
            raise ValueError(
                f"cache: {len(cache.layers)} layers of {tuple(keys.shape)} do not fit {B} rows of {T} tokens"
            )
        allowed = None if mask is None else mask.bool().expand(B, 1, T, past + T).contiguous()  # [B, 1, T, S]
        shape = _Shape(B, T, past, H, C // H, cache.max_tokens, _pointer(allowed))
        pointers = (_Cache(layer.k.data_ptr(), layer.v.data_ptr()) for layer in cache.layers)
        caches = (_Cache * len(cache.layers))(*pointers)
        y = x.float().clone(memory_format=torch.contiguous_format)
        self._decoder.run_blocks(self._dtype, self._blocks, shape, caches, y)
        for layer in cache.layers:
            layer.length += T
        return y


def _panels(weight: Tensor, panel: int, group: int) -> Tensor:
    """Return weights [out, in] as [panels, groups, panel, group], with zeros after the last output and input."""
    n_out, n_in = weight.shape
    weight = nn.functional.pad(weight, (0, -n_in % group, 0, -n_out % panel))
    return weight.view(-1, panel, weight.size(1) // group, group).permute(0, 2, 1, 3).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# -- Compiling -------------------------------------------------------------------------------------------------------


@functools.cache
def load() -> Decoder | None:
    """Return the functions, or None if they cannot be compiled here or `GPT2CORE_COMPILED_DECODER` is off."""
    if environment.is_off(VARIABLE) or not environment.has_avx2():
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["gcc" if shutil.which("gcc") else "cc"]
        return Decoder(_compiled(compiler))
    except (OSError, ValueError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.debug(f"decoder.c was not compiled, PyTorch's libraries decode: {said.strip()[-2000:]}")
        return None


def _compiled(compiler: Sequence[str]) -> Path:
    """Return the compiled file; compile it if there is none for this source, compiler, and CPU."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_S).stdout
    cpu = next(line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("flags"))
    known = (SOURCE.read_bytes(), version, " ".join([*compiler, *FLAGS]).encode(), cpu.encode())
    name = f"decoder-{hashlib.sha256(b''.join(map(_hash, known))).hexdigest()[:16]}.so"
    path = _private_folder() / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / name
            subprocess.run(
                [*compiler, *FLAGS, str(SOURCE), "-o", str(built), "-lm"],
                capture_output=True, check=True, text=True, errors="replace", timeout=TIMEOUT_S,
            )  # fmt: skip
            with built.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(built, path)
    return path


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _private_folder() -> Path:
    """Return the cache of this user, which nobody else can write to: what it holds is run.

    Raises:
        OSError: there is no such folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2core"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = cache.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{cache}: others can write to it")
    return cache
