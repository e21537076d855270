"""What a training keeps aside of network and optimizer, to go on from or to go back to."""
