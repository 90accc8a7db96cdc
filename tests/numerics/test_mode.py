"""Environment variables, errors and warnings of `numerics`, and what must not change its bytes.

A mode is set once per process and before PyTorch loads, so each test starts processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESET = {"OMP_NUM_THREADS": "7", "OPENBLAS_CORETYPE": "SkylakeX", "NPY_ENABLE_CPU_FEATURES": "AVX512F"}


def run(code: str, *prefix: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process whose numerics variables are only those given."""
    from gpt2core import environment

    kept = {
        name: value for name, value in os.environ.items() if name not in {*environment.ENVIRONMENT, *environment.UNSET}
    }
    return subprocess.run(
        [*prefix, sys.executable, "-c", code],
        cwd=ROOT, env=kept | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def output(code: str, *prefix: str, **env: str) -> str:
    """Return what the code prints; it must succeed."""
    result = run(code, *prefix, **env)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


PRINT_ENVIRONMENT = """
import json, os, sys
from gpt2core import numerics
numerics.prepare(MODE)
assert not {"torch", "numpy"} & sys.modules.keys()
print(json.dumps(dict(os.environ)))
"""


def test_portable_overrides_preset_variables() -> None:
    from gpt2core import environment

    found = json.loads(output(f"MODE = 'portable'\n{PRINT_ENVIRONMENT}", **PRESET))
    assert {name: found.get(name) for name in environment.ENVIRONMENT} == environment.ENVIRONMENT
    assert not {*environment.UNSET} & found.keys()


def test_native_sets_nothing() -> None:
    from gpt2core import environment

    found = json.loads(output(f"MODE = 'native'\n{PRINT_ENVIRONMENT}", **PRESET))
    names = {*environment.ENVIRONMENT, *environment.UNSET}
    assert {name: value for name, value in found.items() if name in names} == PRESET


OPERATIONS = ("torch attention", "numpy matrix product")


@pytest.fixture(scope="module")
def starts() -> list[str]:
    """The error of a start for each operation that gives other bits, then the outcome of a start without any."""
    code = f"""
from gpt2core import numerics
numerics.prepare("portable")
from gpt2core.errors import UserError
from gpt2core.numerics import probe
hashes = dict(probe.HASHES)
messages = []
for operation in {OPERATIONS}:
    probe.HASHES[operation] = "0" * 16
    try:
        numerics.start("portable")
    except UserError as error:
        messages.append(str(error))
    assert not numerics.is_portable()
    probe.HASHES.update(hashes)
numerics.start("portable")
import json, torch
print(json.dumps([*messages, f"{{numerics.is_portable()}} {{torch.get_num_threads()}}"]))
"""
    return list(json.loads(output(code, **PRESET)))


def test_preset_variables_decide_nothing(starts: list[str]) -> None:
    """NumPy would refuse to start with features both enabled and disabled, and the probe checks the results."""
    assert starts[-1] == "True 1"


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_prepare_after_a_library_is_an_error(library: str) -> None:
    code = f"""
import {library}
from gpt2core import numerics
numerics.prepare("native")
try:
    numerics.prepare("portable")
except RuntimeError as error:
    print(error)
"""
    found = output(code)
    assert found.startswith("numerics: prepare('portable') was called after ")
    assert library in found


def error_of(code: str, **env: str) -> str:
    """Return the message of the UserError that the code ends with."""
    wrapped = "from gpt2core.errors import UserError\ntry:\n" + "".join(
        f"    {line}\n" for line in code.strip().splitlines()
    )
    return output(f"{wrapped}except UserError as error:\n    print(error)\nelse:\n    print('no error')", **env)


def test_start_without_prepare_is_one_line() -> None:
    message = error_of("from gpt2core import numerics\nnumerics.start('portable')")
    assert message.startswith("numerics: 'portable' must be set up before PyTorch loads")
    assert "\n" not in message


def test_native_starts_without_prepare() -> None:
    assert error_of("from gpt2core import numerics\nnumerics.start('native')\nassert not numerics.is_portable()") == (
        "no error"
    )


def test_several_processes_are_rejected() -> None:
    code = "from gpt2core import numerics\nnumerics.prepare('portable')\nnumerics.start('portable')"
    message = error_of(code, WORLD_SIZE="2")
    assert message.startswith("numerics: 'portable' computes in one process")
    assert "\n" not in message


@pytest.mark.parametrize(("index", "operation"), enumerate(OPERATIONS))
def test_other_bits_are_an_error_that_names_the_operation(starts: list[str], index: int, operation: str) -> None:
    message = starts[index]
    assert message.startswith(f"numerics: portable: {operation} gives other bits on this machine")
    assert "numerics: native" in message
    assert "\n" not in message


UNPROMISED = """
import os, types
from gpt2core import environment, log, numerics, runtime
numerics.prepare("portable")
import torch  # by both children
said = []
log.logger.warning = said.append

def on_a_gpu():
    runtime.device = lambda: types.SimpleNamespace(type="cuda")

def on_an_old_cpu():
    environment.has_avx2 = lambda: False

for machine in (on_a_gpu, on_an_old_cpu):
    if not os.fork():
        machine()
        numerics.start("portable")
        numerics.start("portable")
        from gpt2core.numerics import kernels
        print(numerics.is_portable(), kernels._library, len(said), said[0], flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_machine_without_the_promise_warns_once_and_keeps_its_kernels() -> None:
    on_a_gpu, on_an_old_cpu = output(UNPROMISED).splitlines()
    for line, machine in ((on_a_gpu, "cuda"), (on_an_old_cpu, "CPU")):
        assert line.startswith("False None 1 numerics: portable: this ")
        assert machine in line


# -- What must not change the bytes ----------------------------------------------------------------------------------

TRAINING = """
import hashlib, os
N_CORES = int(os.environ.get("PATCHED_CORES", "0"))
if N_CORES:
    os.cpu_count = lambda: N_CORES
    os.sched_getaffinity = lambda pid: set(range(N_CORES))
from gpt2core import numerics
numerics.prepare("portable")
numerics.start("portable")
import torch
from gpt2core.model import GPT, GPTConfig
from gpt2core.training.batches import Batch
from tests.training.function_task import train
from gpt2core.training.optimizers import muon_and_adamw
from gpt2core.training.schedules import new_schedule

torch.manual_seed(5)
model = GPT(GPTConfig(vocab_size=300, n_positions=160, n_embd=64, n_layer=2, n_head=4))
digest = hashlib.sha256()

def batches(step):
    ids = torch.randint(300, (16, 161), generator=torch.Generator().manual_seed(step))
    return [Batch((ids[:8, :-1],), ids[:8, 1:]), Batch((ids[8:, :-1],), ids[8:, 1:])]

optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.006, weight_decay=0.1, beta1=0.9, beta2=0.95)
train(
    model, optimizers, new_schedule("cosine", 1, 3), batches, lambda batch: model.loss(*batch.tensors, reduction="sum"),
    max_steps=3, grad_clip=1.0, on_step=lambda step: digest.update(repr(step).encode()),
)
for parameter in model.parameters():
    digest.update(parameter.detach().numpy().tobytes())
x = torch.randn(4, 300, 300)  # large enough for two threads, in and outside of a training
digest.update((x @ x).numpy().tobytes() + x.exp().numpy().tobytes() + torch.nn.functional.gelu(x).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def trained() -> str:
    """The hash of a training under the usual conditions."""
    return output(TRAINING)


@pytest.mark.parametrize(
    ("prefix", "env"),
    [
        pytest.param(("taskset", "-c", "0"), {}, id="one core"),
        pytest.param((), {"PATCHED_CORES": "8", "OMP_NUM_THREADS": "7"}, id="8 cores"),
        pytest.param((), {"PATCHED_CORES": "64", "OPENBLAS_CORETYPE": "SkylakeX"}, id="64 cores"),
        pytest.param(
            (),
            {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "5", "MKL_CBWR": "COMPATIBLE"},
            id="other libraries",
        ),
        pytest.param((), {"ATEN_CPU_CAPABILITY": "avx512", "MKL_NUM_THREADS": "5"}, id="instruction set"),
    ],
)
@pytest.mark.slow
def test_a_training_has_the_same_bytes(trained: str, prefix: tuple[str, ...], env: dict[str, str]) -> None:
    assert output(TRAINING, *prefix, **env) == trained
