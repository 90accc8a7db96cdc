"""The pipeline's stages, each run by DVC as `python -m stages.NAME`."""

import contextlib
import importlib.util
import sys

from gpt2core.signals import exit_on_signals

if sys.argv[0] == "-m":  # a stage starts: until its module is found, this is Python's first argument
    exit_on_signals()

# DVC runs the `python` of the active environment, which may be another than the project's.
if any(importlib.util.find_spec(package) is None for package in ("torch", "pydantic", "mlflow")):
    sys.exit(f"error: {sys.executable} lacks this project's packages; activate its environment: . .venv/bin/activate")

if sys.argv[0] == "-m":
    from gpt2core import environment
    from gpt2core.config import read_yaml
    from gpt2core.errors import UserError

    with contextlib.suppress(UserError):  # the stage reports it when it loads the params
        values = read_yaml("params.yaml")
        environment.prepare(
            "portable" if isinstance(values, dict) and values.get("numerics") == "portable" else "native"
        )
