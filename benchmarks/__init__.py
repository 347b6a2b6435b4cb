"""Scripts that print a table or draw a page's figures; nothing here asserts a time."""
