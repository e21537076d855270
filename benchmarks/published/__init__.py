"""What papers report of methods, measured again with ours at a length that a processor can afford."""
