"""Uses of models, a kind in each file: an offloaded model gives the resident's bits, or raises."""
