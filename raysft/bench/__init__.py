"""Studies that run the real training step in several settings and tell what they cost."""
