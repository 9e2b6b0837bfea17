"""What every room needs, and what knows nothing of networks: errors, files, checks, tensors, the machine."""
