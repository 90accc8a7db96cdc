"""Models for `mlflow models serve`: each module is a model "from code", which `tracking/models.py` logs.

MLflow copies the module next to the weights, with the parts of the package that it needs, and runs it to load them.
"""
