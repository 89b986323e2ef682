"""Forward processes: what is known exactly about a linear diffusion."""
