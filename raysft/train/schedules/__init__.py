"""What the learning rate does after the warmup: a file each."""
