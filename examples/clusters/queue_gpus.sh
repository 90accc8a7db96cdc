#!/usr/bin/env bash
# One machine with several GPUs: run DVC's queue with one worker per GPU.
#
#     dvc exp run --queue -S 'pretrain.lr=0.003,0.006,0.012'
#     examples/clusters/queue_gpus.sh 8        # the number of GPUs; returns when the queue is empty
#     dvc exp show
#
# `dvc queue start --jobs 8` also starts eight workers, but all of them would use the first GPU.
set -euo pipefail
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: queue_gpus.sh N, the number of GPUs" >&2
  exit 2
fi
for gpu in $(seq 0 $(($1 - 1))); do
  CUDA_VISIBLE_DEVICES="$gpu" dvc exp queue-worker "gpu-$gpu@localhost" &
done
# A worker ends ten seconds after the queue is empty, by a message from DVC that it may miss if there are several.
while status="$(dvc queue status)" && [[ "$status" =~ (Queued|Running) ]]; do sleep 10; done
for worker in $(jobs -p); do kill -TERM "$worker" 2>/dev/null || true; done
wait || true
