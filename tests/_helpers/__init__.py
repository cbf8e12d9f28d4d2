"""What several tests share: makers of models and checkpoints, references, and processes to start."""
