"""One gateway and, behind it, one Ray Serve deployment a model."""
