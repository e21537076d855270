"""Trainings beside each other: every method, narrow networks, peers' tools, trained networks pruned."""
