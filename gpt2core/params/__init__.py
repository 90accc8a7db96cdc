"""The whole of `params.yaml`: checks, profiles, rendering, and updates of older files.

An observer: it can reject params, and it cannot change a result. Stages compute with `gpt2core.config.load_section`.
"""

from gpt2core.params.load import load_params, read_values
from gpt2core.params.schema import Params

__all__ = ["Params", "load_params", "read_values"]
