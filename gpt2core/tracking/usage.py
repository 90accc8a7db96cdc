"""The machine's load while a stage runs, under the names of MLflow's page of system metrics."""

from __future__ import annotations

import sys


def usage() -> dict[str, float]:
    """Return CPU load since the last call, and memory of the machine and this process; of the GPU if torch uses it."""
    import psutil

    process, memory = psutil.Process(), psutil.virtual_memory()
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/process_memory_usage_megabytes": process.memory_info().rss / 1e6,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
    return metrics
