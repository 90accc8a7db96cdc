"""The pipeline's stages, each run by DVC as `python -m stages.NAME`."""

import importlib.util
import sys

# DVC runs the `python` of the active environment, which may be another than the project's.
if any(importlib.util.find_spec(package) is None for package in ("torch", "pydantic", "mlflow")):
    sys.exit(f"error: {sys.executable} lacks this project's packages; activate its environment: . .venv/bin/activate")
