"""Tasks of test_executor.py. Processes import them by name, so they are in a module that imports no test tools."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt2core import executor
from gpt2core.errors import UserError


def square(number: int) -> int:
    executor.report("began", number)
    executor.report("squares", number)
    return number * number


def refuse(number: int) -> int:
    if number == 2:
        raise UserError(f"row {number}: is not allowed")
    if number == 3:
        raise FileNotFoundError(2, "No such file or directory", "gone.txt")
    return number


def die_once(folder: str, number: int) -> int:
    """Kill this process at the first call for task 1."""
    died = Path(folder, "died")
    if number == 1 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for(folder: str, number: int) -> list[object]:
    """Say which node and process run the task, and wait for the test's permission to end."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    Path(folder, f"{number}-{node}-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return [number, node]


def environment_of(_: int) -> list[object]:
    names = ("GPT2CORE_RAY", "GPT2CORE_PROCESSES", "ATEN_CPU_CAPABILITY")
    return [str(Path.cwd()), {name: os.environ.get(name) for name in names}, executor.__file__, "torch" in sys.modules]


def with_a_model(folder: Path) -> dict[str, Any]:
    """Let a small model compute all that can run on a cluster, and return the results."""
    import numpy as np

    from gpt2core.checkpoint.cluster import batches_of_directory, batches_of_weights
    from gpt2core.checkpoint.decoding import load_for_decoding
    from gpt2core.checkpoint.model_dir import load_language_model
    from gpt2core.evaluation.harness import continue_batch, score_batch
    from gpt2core.evaluation.judges.local import local_chat
    from gpt2core.evaluation.metrics.language_model import nats
    from gpt2core.inference.respond import respond

    packed, tokenizer = load_for_decoding(folder, "float32")
    tokens = np.arange(500) * 7 % tokenizer.vocab_size
    results: dict[str, Any] = {}
    with batches_of_directory(folder, packed, tokenizer, "float32") as batches:
        results["nats"] = nats(packed, tokens, tokenizer.eot_id, 32, batch_size=3, batches=batches)
        scored = [[[[1, 2, 3], [4, 5]], [[[3, 9], [7]], [[6]]]], [[[8]], [[[2]]]]]
        results["scores"] = list(batches.map(score_batch, scored))
        options = [4, {"temperature": 1.0}, ["zz"]]
        results["texts"] = list(batches.map(continue_batch, [[[[1, 2], [3]], *options], [[[4]], *options]]))
    model, _ = load_language_model(folder)
    entries = [{"instruction": f"Say {n} {'and so on ' * n}", "input": ""} for n in range(5)]
    answered: list[object] = []
    with batches_of_weights(model, tokenizer) as batches:
        results["responses"] = respond(model, tokenizer, entries, 8, batch_size=2, batches=batches)
        results["reports"] = list(batches.map(tell, [[3], [4]], lambda *values: answered.append(values))), answered
    chat = local_chat(folder)
    with ThreadPoolExecutor(chat.concurrency) as pool:
        results["replies"] = list(pool.map(chat.reply, ([{"role": "user", "content": f"Rate {n}."}] for n in range(6))))
    results["left"] = [path.name for path in Path.cwd().glob(".checkpoints/.weights*")]
    return results


def tell(model: Any, tokenizer: Any, number: int) -> int:
    executor.report("told", number)
    return model.config.n_positions + tokenizer.vocab_size + number


def main() -> None:
    """Run the tasks on a Ray cluster of this machine, and print what they return."""
    import psutil

    folder, results, reports, errors = sys.argv[1], [], [], []
    with executor.open_executor() as ray:

        def run(function: Callable[..., Any], *arguments: list[Any]) -> None:
            try:
                results.append(list(ray.map(function, arguments, lambda *values: reports.append(values))))
            except (UserError, OSError) as error:
                errors.append([type(error).__name__, str(error), repr(error.__cause__)])

        run(square, *([n] for n in range(20)))
        run(environment_of, [0])
        run(die_once, *([folder, n] for n in range(4)))
        run(refuse, [0], [1], [2])
        run(refuse, [3])
        with_model = with_a_model(Path(folder, "model"))
        connections = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # the killed one
                connections += process.net_connections()
        listening = sorted({c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN})
    print(
        json.dumps(
            {"results": results, "reports": reports, "errors": errors, "listening": listening, "model": with_model}
        )
    )
