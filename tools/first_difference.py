"""Find the first tensor of a training step that differs between two CPU models (`python tools/first_difference.py`).

qemu-user emulates the CPUs. Each runs this file again, which records the hash of every operator's results in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600
# Their results are memory that nothing was written to yet.
UNINITIALIZED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "empty_permuted")

Row = dict[str, Any]  # operator, module, phase, shapes of inputs and results, hashes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--cpus", nargs=2, default=("EPYC", "Haswell-noTSX"), show_default=True, metavar="CPU CPU",
    help="Two CPU models of qemu-x86_64; `qemu-x86_64 -cpu help` lists them.",
)  # fmt: skip
@click.option(
    "--numerics", "mode", type=click.Choice(["portable", "native"]), default="portable", show_default=True,
    help="How the training computes.",
)  # fmt: skip
@click.option("--record", type=click.Path(path_type=Path), hidden=True)  # what an emulated process is asked to do
def main(cpus: tuple[str, str], mode: str, record: Path | None) -> None:
    """Run a training step of a small GPT under two emulated CPUs and print the first tensor that differs.

    Records initial weights, forward pass, backward pass and optimizers. Takes about a minute on two cores. The exit
    code is 1 if a tensor differs, and 2 if the step cannot be run.
    """
    if record:
        record.write_text(json.dumps(training_step(mode)), encoding="utf-8")
        return
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        raise fail("qemu-x86_64 is missing; install it: apt install qemu-user")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        paths = [Path(folder) / f"{number}.json" for number in range(2)]
        first, second = pool.map(lambda cpu, path: emulate(emulator, cpu, mode, path), cpus, paths)
    sys.exit(compare(cpus, first, second))


def fail(message: str) -> click.ClickException:
    error = click.ClickException(message)
    error.exit_code = 2
    return error


def emulate(emulator: str, cpu: str, mode: str, path: Path) -> list[Row]:
    """Return the rows that a process on this CPU model records."""
    python = Path(sys.executable).resolve()  # the emulator loads it, and does not know virtual environments
    result = subprocess.run(
        [emulator, "-cpu", cpu, python, __file__, "--numerics", mode, "--record", path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and "TCG doesn't support" not in line]
        raise fail(f"{cpu}: {lines[-1] if lines else f'exit code {result.returncode}'}")
    return list(json.loads(path.read_text(encoding="utf-8")))


def compare(cpus: Sequence[str], first: Sequence[Row], second: Sequence[Row]) -> int:
    """Print the first row that differs, or that none does; return the exit code."""
    differing = [number for number, (a, b) in enumerate(zip_longest(first, second)) if a != b]
    if not differing:
        click.echo(f"no difference: {len(first):,} operators gave the same bytes on {' and '.join(cpus)}")
        return 0
    number = differing[0]
    click.echo(f"operator {number + 1:,} of {len(first):,} is the first of {len(differing):,} that differ:")
    for cpu, rows in zip(cpus, (first, second), strict=True):
        click.echo(f"  {cpu}: {describe(rows[number]) if number < len(rows) else 'no operator'}")
    return 1


def describe(row: Row) -> str:
    place = f"{row['phase']}, {row['module']}" if row["module"] else row["phase"]
    inputs, results = (" ".join(map(str, row[key])) or "none" for key in ("inputs", "results"))
    return f"{row['operator']} ({place}) {inputs} -> {results}, SHA-256 {' '.join(row['hashes'])}"


# -- In an emulated process ------------------------------------------------------------------------------------------


def training_step(mode: str) -> list[Row]:
    """Run a step of a small GPT with Muon and AdamW and return a row for each operator."""
    from gpt2core import numerics

    numerics.prepare(mode)  # type: ignore[arg-type]  # click checks it
    numerics.start(mode)  # type: ignore[arg-type]
    import torch
    from torch import nn

    from gpt2core.model import GPT, GPTConfig
    from gpt2core.training.optimizers import muon_and_adamw

    recorder = new_recorder()
    with recorder:
        torch.manual_seed(1)
        model = GPT(GPTConfig(vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=4))
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: recorder.modules.append(name))
            module.register_forward_hook(lambda *_: recorder.modules.pop() and None, always_call=True)
        ids = torch.randint(300, (4, 65), generator=torch.Generator().manual_seed(2))
        optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.006, weight_decay=0.1, beta1=0.9, beta2=0.95)
        recorder.phase = "forward"
        loss = model.loss(ids[:, :-1], ids[:, 1:], reduction="sum") / ids[:, 1:].numel()
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "optimizers"
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    return recorder.rows


def new_recorder() -> Any:
    """Return a context in which the results of every operator are recorded."""
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Recorder(TorchDispatchMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Row] = []
            self.modules: list[str] = []  # those whose forward pass is running
            self.phase = "initial weights"

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            if func.overloadpacket.__name__ in UNINITIALIZED:
                return result
            written = tree_leaves((result, list(mutated(func, args, kwargs))))
            self.rows.append(
                {
                    "operator": str(func),
                    "phase": self.phase,
                    "module": self.modules[-1] if self.modules else "",
                    "inputs": [list(x.shape) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)],
                    "results": [list(x.shape) for x in written if isinstance(x, Tensor)],
                    "hashes": [digest(x) for x in written if isinstance(x, Tensor | float | int)],
                }
            )
            return result

    def digest(value: Tensor | float) -> str:
        if isinstance(value, Tensor):
            content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            content = repr(value).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    return Recorder()


def mutated(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments that an operator without results writes to."""
    if func._schema.returns:
        return
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            with contextlib.suppress(IndexError, KeyError):
                yield kwargs[argument.name] if argument.name in kwargs else args[number]


if __name__ == "__main__":
    main()
