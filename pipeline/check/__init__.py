"""Accuracy and speed of every form of a network, and the reasons."""
