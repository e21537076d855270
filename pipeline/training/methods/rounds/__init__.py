"""Methods that prune in rounds: phases of one training, with one progress and one history."""
