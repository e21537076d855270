"""Tests of gates, and of the methods that have them."""
