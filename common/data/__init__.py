"""Public data lists, splits and synthetic data."""
