"""The classical score-based models that phase-space diffusion is compared with."""
