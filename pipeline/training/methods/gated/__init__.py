"""Methods that multiply channels by gates while the network trains, or look at what a gate would change."""
