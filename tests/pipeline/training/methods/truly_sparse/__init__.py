"""Tests of connections that are stored alone."""
