"""Memory and time of pretraining each size on 1 to 64 GPUs: the tables of docs/scaling.md.

    python scripts/scaling.py

All by formulas, in bfloat16 autocast with weights in float32, as this project trains. The activations per token are
what PyTorch keeps for the backward pass on a CPU (tests/test_scaling.py compares). The fraction of its peak that a GPU
reaches (MFU) is an assumption, compared with published runs.

Letters: P parameters, L blocks, C width, H heads, V vocabulary, T context, n GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2core.config.presets import PRESETS
from gpt2core.model.loss import CHUNK_LOGITS

V, T = 50_257, 1024
STEP_TOKENS = 1 << 19  # per update, for every size and number of GPUs; as many as for GPT-3's 124M
TRAINING_TOKENS = 10e9
MFU = 0.4  # fraction of a GPU's peak while it computes; see `PUBLISHED`
SIZES = ("124M", "355M", "774M", "1558M")
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
FREE = 0.1  # fraction of a GPU's memory that is left to CUDA, NCCL, and gaps between tensors
GB = 1e9


@dataclass(frozen=True)
class GPU:
    """A GPU and its links; their speed is that of a gradient all-reduce, about 3/4 of the nominal speed."""

    name: str
    memory_bytes: float
    peak_flops: float  # dense, bfloat16, operations per second
    node_bytes_s: float  # within a node of eight
    network_bytes_s: float  # between nodes


A100 = GPU("A100", 80e9, 312e12, 230e9, 20e9)  # NVLink 3: 300 GB/s each way; 200 Gb/s per GPU
H100 = GPU("H100", 80e9, 989e12, 350e9, 40e9)  # NVLink 4: 450 GB/s each way; 400 Gb/s per GPU


@dataclass(frozen=True)
class Size:
    """One of the sizes of the GPT-2 paper."""

    name: str

    @property
    def L(self) -> int:
        return PRESETS[self.name]["n_layer"]

    @property
    def C(self) -> int:
        return PRESETS[self.name]["n_embd"]

    @property
    def H(self) -> int:
        return PRESETS[self.name]["n_head"]

    @property
    def block_parameters(self) -> int:
        """Four products of C² (queries, keys, values, output), two of 4 C² (MLP), 9 C biases, two norms."""
        return 12 * self.C**2 + 9 * self.C + 4 * self.C

    @property
    def parameters(self) -> int:
        """Embeddings of tokens and positions, the blocks, the last norm; the head is the token embedding."""
        return (V + T) * self.C + self.L * self.block_parameters + 2 * self.C

    @property
    def token_flops(self) -> float:
        """Operations of forward and backward pass: 6 per parameter, and attention's two products of T x C per block."""
        return 6 * self.parameters + 12 * self.L * self.C * T

    @property
    def token_activation_bytes(self) -> int:
        """Bytes per token for the backward pass: the blocks', and the last norm's input, hidden state, and gradient."""
        return self.L * self.block_activation_bytes + 12 * self.C

    @property
    def block_activation_bytes(self) -> int:
        """Bytes per token that a block keeps.

        Both norms' inputs in float32 and outputs in bfloat16; queries, keys, and values, attention's output, and the
        MLP's 4 C before and after GELU, in bfloat16; 4 bytes per head and a norm's two numbers.
        """
        return (2 * (4 + 2) + 6 + 2 + 8 + 8) * self.C + 4 * self.H + 4 * 4

    def state_bytes(self, n: int, sharding: str) -> float:
        """Return weights, gradients, AdamW's two moments in float32, and autocast's copies of weights in bfloat16.

        Sharded, each GPU holds an n-th of the first four, and in full, in float32: two blocks, the current and the next
        one, with the gradient of one, and the embeddings with theirs.
        """
        copies = 2 * self.parameters
        if sharding == "none":
            return 16 * self.parameters + copies
        return 16 * self.parameters / n + copies + 4 * 3 * self.block_parameters + 4 * 2 * (V + T) * self.C

    def memory_bytes(self, batch_size: int, n: int, sharding: str) -> float:
        """Return the most memory of a GPU: states, the activations of a micro-batch, and the loss.

        The loss holds the head's gradient, and a chunk of logits three times in float32 and once in bfloat16.
        """
        loss = 4 * V * self.C + CHUNK_LOGITS * (3 * 4 + 2)
        return self.state_bytes(n, sharding) + batch_size * T * self.token_activation_bytes + loss


@dataclass(frozen=True)
class Plan:
    """How a size trains on n GPUs, with the largest micro-batch that fits."""

    size: Size
    gpu: GPU
    n: int
    sharding: str
    step_tokens: int = STEP_TOKENS

    @property
    def batch_size(self) -> int:
        """Windows of a micro-batch, a power of two; 0 if not even one fits."""
        windows = self.step_tokens // T // self.n
        fitting = (1 << i for i in range(windows.bit_length()))
        limit = (1 - FREE) * self.gpu.memory_bytes
        return max((b for b in fitting if self.size.memory_bytes(b, self.n, self.sharding) <= limit), default=0)

    @property
    def n_micro(self) -> int:
        """Micro-batches of a step in each process."""
        return self.step_tokens // T // self.n // self.batch_size

    @property
    def memory_bytes(self) -> float:
        return self.size.memory_bytes(self.batch_size, self.n, self.sharding)

    @property
    def compute_s(self) -> float:
        """Seconds of computation per step."""
        return self.step_tokens * self.size.token_flops / (self.n * MFU * self.gpu.peak_flops)

    @property
    def communication_s(self) -> float:
        """Seconds of communication per step.

        Adding up P float32 gradients sends 2 (n - 1) / n of them; sharded, only half of that, but the weights are sent
        twice per micro-batch, for the forward and the backward pass.
        """
        if self.n == 1:
            return 0.0
        passes = 2 if self.sharding == "none" else 1 + 2 * self.n_micro
        bandwidth = self.gpu.node_bytes_s if self.n <= 8 else self.gpu.network_bytes_s
        return passes * 4 * self.size.parameters * (self.n - 1) / self.n / bandwidth

    @property
    def step_s(self) -> float:
        """Seconds of a step: computation, and communication that does not overlap with it.

        Data-parallel gradients are sent during the last micro-batch's backward pass, two thirds of its time; sharded
        weights at any time.
        """
        overlap_s = self.compute_s if self.sharding == "full" else self.compute_s * 2 / 3 / self.n_micro
        return self.compute_s + max(0.0, self.communication_s - overlap_s)

    @property
    def tokens_s(self) -> float:
        return self.step_tokens / self.step_s


@dataclass(frozen=True)
class Published:
    """A published training run."""

    who: str
    size: Size
    tokens: float
    duration_s: float
    gpu: GPU
    n: int = 8

    @property
    def mfu(self) -> float:
        """The fraction of the peak that it reached."""
        return self.tokens * self.size.token_flops / self.duration_s / (self.n * self.gpu.peak_flops)

    @property
    def planned_s(self) -> float:
        """The duration in seconds that the assumptions here predict."""
        return self.tokens / Plan(self.size, self.gpu, self.n, "none").tokens_s


PUBLISHED = (
    Published("llm.c", Size("124M"), 10e9, 90 * 60, A100),
    Published("llm.c", Size("1558M"), 32_000 * 2**20, 24 * 3600, H100),
    Published("nanoGPT", Size("124M"), 600_000 * 491_520, 4 * 24 * 3600, A100),
)


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def header(*titles: str) -> list[str]:
    """Return the first two lines of a table; a column whose title ends in a colon is aligned to the right."""
    rule = "|".join("---:" if title.endswith(":") else "---" for title in titles)
    return [row(*(title.removesuffix(":") for title in titles)), f"|{rule}|"]


def hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def fixed_table() -> list[str]:
    """Return the figures that do not depend on the number of GPUs."""
    lines = header(
        "size", "parameters:", "weights, gradients, AdamW:", "activations per token:", "operations per token:"
    )
    for size in map(Size, SIZES):
        states, activations = f"{16 * size.parameters / GB:.1f} GB", f"{size.token_activation_bytes / 1e6:.2f} MB"
        lines.append(row(size.name, f"{size.parameters:,}", states, activations, f"{size.token_flops / GB:.2f} G"))
    return lines


def plan_table(gpu: GPU) -> list[str]:
    """Return each size on 1 to 64 GPUs."""
    lines = header(
        "size", "GPUs:", "sharding", "batch_size x grad_accum_steps:", "memory per GPU:", "tokens/s:", "10B tokens:"
    )
    for size in map(Size, SIZES):
        for n in GPU_COUNTS:
            for sharding in ("none", "full") if size.name == "1558M" and n > 1 else ("none",):
                plan = Plan(size, gpu, n, sharding)
                # The params count the micro-batches of all processes.
                batch = f"{plan.batch_size} x {plan.n_micro * n}"
                memory, speed = f"{plan.memory_bytes / GB:.0f} GB", f"{plan.tokens_s:,.0f}"
                time = hours(TRAINING_TOKENS / plan.tokens_s)
                lines.append(row(size.name, n, sharding, batch, memory, speed, time))
    return lines


def published_table() -> list[str]:
    """Return published runs compared with these assumptions."""
    lines = header("run", "tokens:", "GPUs", "published time:", "MFU:", "predicted time:")
    for run in PUBLISHED:
        name, tokens, gpus = f"{run.who} {run.size.name}", f"{run.tokens / 1e9:.1f}B", f"{run.n} {run.gpu.name}"
        lines.append(row(name, tokens, gpus, hours(run.duration_s), f"{run.mfu:.0%}", hours(run.planned_s)))
    return lines


def tables() -> str:
    """Return all tables in Markdown."""
    return "\n\n".join("\n".join(lines) for lines in (fixed_table(), plan_table(H100), published_table()))


if __name__ == "__main__":
    print(tables())
