"""Tests of masks that the start of a training decides."""
