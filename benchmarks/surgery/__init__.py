"""What cutting costs, and what the widths that it leaves are worth."""
