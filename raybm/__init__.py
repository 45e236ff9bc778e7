"""raybm: one YAML job spec takes a model from raw data to an autoscaled endpoint on a Ray cluster."""

__version__ = "0.1.0"
