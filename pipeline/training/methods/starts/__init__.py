"""Masks that the start of a training decides: drawn, scored on a batch, tried for an epoch, or by what moves first."""
