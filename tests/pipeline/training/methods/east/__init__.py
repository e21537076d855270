"""Tests of EAST."""
