"""Procedurally drawn street scenes: an image and its label ids from one random stream."""
