"""The fine-tuned models as MLflow serves them: each module is a model "from code", which `tracking/models.py` logs.

MLflow copies the module beside the weights, with the parts of the package that it needs, and runs it to open them.
"""
