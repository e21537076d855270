"""Which channel each element belongs to, and what is true of it."""
