"""MLflow runs and figures of the pipeline's stages. MLflow and matplotlib are imported when first used, not here."""

from __future__ import annotations

from gpt2core.tracking.mlflow_run import StageRun, track_stage

__all__ = ["StageRun", "track_stage"]
