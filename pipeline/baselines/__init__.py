"""Would something simpler have done: networks that cost no pruning, trained and measured beside a run's own."""
