"""Scripts that print a table; nothing here asserts a time."""
