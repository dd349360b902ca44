"""What encrypted training is compared with: the same features, no encryption."""
