"""GPT-2's tokenizers: byte-level BPE by rank, trained here, read from OpenAI's files, or one token a character."""

from gpt2core.tokenizer.byte_pair import END_OF_TEXT, Tokenizer
from gpt2core.tokenizer.read import has_tokenizer, load_tokenizer, read_bpe

__all__ = ["END_OF_TEXT", "Tokenizer", "has_tokenizer", "load_tokenizer", "read_bpe"]
