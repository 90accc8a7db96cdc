"""Seeds, threads, device and dtype; and how a stage ends when its user made a mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2core.errors import UserError

if TYPE_CHECKING:
    import torch


DECODING_DTYPES = ("float32", "bfloat16", "float16", "int8")  # of the weights while generating; see model/packed.py


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`. A user's mistake ends in its message and exit code 1, Ctrl-C in 130; no traceback."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


def seed_everything(seed: int) -> None:
    """Seed torch's global generators (initial weights, dropout). Data order has generators of its own."""
    import torch

    torch.manual_seed(seed)


def device() -> torch.device:
    """`GPT2CORE_DEVICE` where set, else CUDA where there is one, else the CPU."""
    import torch

    name = os.environ.get("GPT2CORE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"GPT2CORE_DEVICE={name}: this device cannot be used ({reason}); try cpu") from None


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a params value: float32 or bfloat16."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def environment() -> dict[str, str]:
    """What decides the last bits of a result: versions, threads, instruction set. Logged with every run."""
    import platform

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
