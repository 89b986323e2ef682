"""Sampling: runs plans with a network, follows the probability flow, bounds likelihoods."""
