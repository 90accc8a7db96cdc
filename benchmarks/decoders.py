"""The peers of generation: transformers, CTranslate2, llama.cpp, and vLLM with the weights of a model of ours.

Each writes the files that its library wants, greedily decodes a given number of new tokens, and never stops early.

Shapes: B prompts, P tokens of each.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2core.checkpoint.config_json import config_json
from gpt2core.checkpoint.names import to_hf
from gpt2core.model import GPT

Decode = Callable[[Tensor, int], Tensor]  # ids [B, P], new tokens -> [B, P + new]
VLLM_MEMORY = 0.3  # of a GPU: the other sides are there, too


def peers(device: torch.device) -> dict[str, Callable[[GPT], Decode]]:
    """Return what makes each peer of a device, by its name, which ends in the dtype of the weights."""
    if device.type == "cuda":
        return {
            "transformers bfloat16": lambda model: transformers_peer(model, torch.bfloat16),
            "vLLM bfloat16": vllm_peer,
        }
    return {
        "transformers float32": transformers_peer,
        "CTranslate2 float32": lambda model: ctranslate2_peer(model, "float32"),
        "CTranslate2 int8": lambda model: ctranslate2_peer(model, "int8"),
        "llama.cpp Q8_0": llama_cpp_peer,
    }


PACKAGES = {  # that a peer needs
    "transformers": ("transformers",),
    "CTranslate2": ("ctranslate2", "transformers"),
    "llama.cpp": ("llama_cpp", "gguf"),
    "vLLM": ("vllm",),
}
ONE_PROMPT = ("llama.cpp",)  # these peers decode one prompt


def lacks(peer: str, n_prompts: int = 1) -> str:
    """Return why a peer cannot run here, or an empty string."""
    name = peer.split()[0]
    missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return f"{name} decodes one prompt" if name in ONE_PROMPT and n_prompts > 1 else ""


def hf_state(model: GPT) -> dict[str, Tensor]:
    """Return the weights by transformers' names."""
    return to_hf(model.state_dict(), model.config, None)


def transformers_peer(model: GPT, dtype: torch.dtype = torch.float32) -> Decode:
    """Return transformers' generate; in float32 without a copy of the weights."""
    import transformers

    config = {key: value for key, value in model.config.to_dict().items() if key != "qkv_bias"}
    with torch.device("meta"):
        peer: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    peer.load_state_dict({k: v.to(dtype) for k, v in hf_state(model).items()}, strict=False, assign=True)
    peer.tie_weights()
    peer.eval()

    @torch.inference_mode()
    def decode(ids: Tensor, new: int) -> Tensor:
        ids = ids.to(peer.device)
        settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
        return peer.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids)).cpu()

    return decode


def ctranslate2_peer(model: GPT, compute_type: str) -> Decode:
    """Return CTranslate2's generator, with as many threads as torch has. Its tokens are the ids as strings."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader
    from ctranslate2.specs import common_spec, transformer_spec

    sizes = model.config
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        sizes.n_layer, sizes.n_head, activation=common_spec.Activation.GELUTanh
    )
    loader = GPT2Loader()
    loader.set_decoder(spec.decoder, model.transformer.float())
    loader.set_linear(spec.decoder.projection, model.lm_head.float())
    spec.register_vocabulary([str(i) for i in range(sizes.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    with tempfile.TemporaryDirectory() as folder:
        spec.validate()
        spec.optimize()
        spec.save(folder)
        generator = ctranslate2.Generator(
            folder, compute_type=compute_type, inter_threads=1, intra_threads=torch.get_num_threads()
        )

    def decode(ids: Tensor, new: int) -> Tensor:
        tokens = [[str(i) for i in row] for row in ids.tolist()]
        results = generator.generate_batch(
            tokens, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, end_token=[]
        )
        return torch.cat([ids, torch.tensor([result.sequences_ids[0] for result in results])], dim=1)

    return decode


GGUF_NAMES = {  # transformers' -> llama.cpp's, without the block
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output", "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a parameter.

    >>> gguf_name("transformer.h.3.attn.c_proj.weight"), gguf_name("transformer.wte.weight")
    ('blk.3.attn_output.weight', 'token_embd.weight')
    """
    module, _, kind = name.removeprefix("transformer.").rpartition(".")
    block, rest = ("", module)
    if module.startswith("h."):
        number, _, rest = module.removeprefix("h.").partition(".")
        block = f"blk.{number}."
    return f"{block}{GGUF_NAMES[rest]}.{kind}"


def write_gguf(model: GPT, path: Path) -> None:
    """Write a GGUF file with matrices in Q8_0 and the rest in float32, as llama.cpp's own quantization has it.

    It has no tokenizer: llama.cpp is given ids.
    """
    import gguf

    sizes = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(sizes.n_positions)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_block_count(sizes.n_layer)
    writer.add_feed_forward_length(4 * sizes.n_embd)
    writer.add_head_count(sizes.n_head)
    writer.add_layer_norm_eps(sizes.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(sizes.vocab_size)
    for name, tensor in model.state_dict().items():
        values = tensor.detach().float().numpy()  # of linear layers [out, in], as llama.cpp has them
        # An output head that is the token embedding is left out, as by llama.cpp's converter.
        if name == "lm_head.weight" and sizes.tie_word_embeddings:
            continue
        is_matrix = values.ndim == 2 and "wpe" not in name
        kind = gguf.GGMLQuantizationType.Q8_0 if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_peer(model: GPT) -> Decode:
    """Return llama.cpp's generate with Q8_0 weights, for one prompt, with as many threads as torch has."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, path)
        threads = torch.get_num_threads()
        llama = llama_cpp.Llama(
            str(path), n_ctx=model.config.n_positions, n_threads=threads, n_threads_batch=threads, use_mmap=False,
            verbose=False,
        )  # fmt: skip

    def decode(ids: Tensor, new: int) -> Tensor:
        (prompt,) = ids.tolist()
        llama.reset()
        tokens = llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
        return torch.tensor([prompt + [next(tokens) for _ in range(new)]])

    return decode


def vllm_peer(model: GPT) -> Decode:
    """Return vLLM's generate in bfloat16."""
    import vllm
    from safetensors.torch import save_file

    from gpt2core import files

    folder = Path(tempfile.mkdtemp())
    try:
        save_file({k: v.cpu().contiguous() for k, v in hf_state(model).items()}, folder / "model.safetensors")
        files.write_json(folder / "config.json", config_json(model.config, 0))
        llm = vllm.LLM(
            model=str(folder), dtype="bfloat16", skip_tokenizer_init=True, gpu_memory_utilization=VLLM_MEMORY
        )
    finally:
        shutil.rmtree(folder)

    def decode(ids: Tensor, new: int) -> Tensor:
        settings = vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
        results = llm.generate(prompts, settings, use_tqdm=False)
        return torch.cat([ids.cpu(), torch.tensor([result.outputs[0].token_ids for result in results])], dim=1)

    return decode
