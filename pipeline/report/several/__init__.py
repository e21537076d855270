"""Pages over several runs, each of which has its own report."""
