"""Training: everything that updates weights."""
