"""GPT-2 from scratch: small, slow, explicit forms, in the order of the chapters in docs/learn.

Each form is one screen. Its test checks that it equals PyTorch's own or the pipeline's module, forward and gradient.
Nothing else in the package imports this part.
"""

from __future__ import annotations

import importlib
from typing import Any

# Each module, in the order of the chapters, and its public names.
MODULES = {
    "words": ("SimpleTokenizerV1", "SimpleTokenizerV2", "split_words", "build_vocab"),
    "bpe": ("spell", "count_pairs", "merge_pair", "bpe_steps", "bpe_encode"),
    "dataset": ("GPTDatasetV1", "create_dataloader_v1"),
    "positions": ("PositionalEncoding", "LearnedPositionalEncoding"),
    "losses": ("softmax", "softmax_naive", "cross_entropy", "perplexity"),
    "attention": (
        "simple_attention", "SelfAttention_v1", "SelfAttention_v2", "CausalAttention", "MultiHeadAttentionWrapper",
    ),
    "multi_head": ("MultiHeadAttention",),
    "residual": ("DeepNetwork", "ExampleDeepNeuralNetwork", "gradient_sizes", "print_gradients"),
    "dummy": ("DummyGPTModel",),
    "gpt": ("LayerNorm", "GELU", "FeedForward", "CausalSelfAttention", "TransformerBlock", "GPTModel"),
    "counts": ("gpt2_config", "parameter_counts", "forward_flops", "training_bytes", "kv_cache_bytes"),
    "optim": ("AdamW", "warmup_cosine", "clip_gradients", "train_step"),
    "training": ("small_config", "initialize", "train_small"),
    "sampling": ("greedy", "scale_by_temperature", "keep_top_k", "keep_top_p", "draw"),
    "generation": (
        "generate_text_simple", "generate_by_sampling", "generate", "text_to_token_ids", "token_ids_to_text",
    ),
    "kv_cache": ("cached_attention", "cached_logits", "generate_with_cache"),
    "classify": ("last_token_logits", "classify_review"),
    "spam": ("create_balanced_dataset", "random_split", "SpamDataset"),
    "instruct": (
        "instruction_example", "instruction_batch", "format_input", "InstructionDataset", "custom_collate_fn",
    ),
    "simple_training": (
        "calc_loss_batch", "calc_loss_loader", "calc_accuracy_loader", "evaluate_model", "generate_and_print_sample",
        "train_model_simple", "train_classifier_simple",
    ),
    "openai_weights": ("download_and_load_gpt2", "load_weights_into_gpt"),
    "lora": ("LoRALayer", "LinearWithLoRA", "add_lora", "merge_lora"),
}  # fmt: skip
_HOME = {name: module for module, names in MODULES.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the tokenizers need no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"gpt2core.learn.{_HOME[name]}"), name)
    raise AttributeError(f"module 'gpt2core.learn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
