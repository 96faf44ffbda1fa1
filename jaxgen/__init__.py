"""Pure functions for measuring what papers claim about generative models."""
