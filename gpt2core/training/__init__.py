"""Training: one loop under pretraining and both fine-tunings."""
