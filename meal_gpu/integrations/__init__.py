"""MEAL in the vocabulary of other active-learning packages; each module here needs its package."""
