"""MLflow runs and figures of the pipeline's stages. MLflow and matplotlib are imported when first used, not here."""

from __future__ import annotations

from gpt2core.track.mlflow_run import StageRun, stage_run

__all__ = ["StageRun", "stage_run"]
