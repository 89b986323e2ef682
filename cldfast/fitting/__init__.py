"""Plans whose coefficients and times are fitted to a network."""
