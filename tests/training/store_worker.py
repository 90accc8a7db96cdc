"""What `test_object_store.py` starts as another machine: a training that may stop at a step, until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch

from gpt2core.log import log_to_stderr
from gpt2core.runtime import stage_main
from gpt2core.training import lease
from gpt2core.training.checkpoints import stage_checkpoints
from gpt2core.training.task import Step
from tests.training.test_resume import Training


def main() -> None:
    out, stop_step = Path(sys.argv[1]), int(sys.argv[2])
    lease.POLL_S = 0.1
    torch.set_num_threads(1)
    log_to_stderr()

    def on_step(done: Step) -> None:
        if done.step == stop_step:
            print("stopped", flush=True)
            sys.stdin.read()

    with stage_checkpoints("pretrain", {"lr": 1}, []) as stage:
        training = Training(stage.training("pretrain")).run(on_step)
    safetensors.torch.save_file({"weights": training.weights()}, out)


if __name__ == "__main__":
    stage_main(main)
