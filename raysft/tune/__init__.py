"""`raysft tune`: a search over config keys, of which every trial is a real training run."""
