"""Tiny models of transformers and diffusers with random weights, and their comparison."""
