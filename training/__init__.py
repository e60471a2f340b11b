"""What the loop in train.py stands on: optimisers, checkpoints, logs and validation."""
