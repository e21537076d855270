"""Weights that are stored as their connections alone while the network trains."""
