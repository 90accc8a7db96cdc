"""Model directories: save, load, verify; tensor names; OpenAI's TensorFlow format; PEFT adapters."""
