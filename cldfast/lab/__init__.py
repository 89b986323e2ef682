"""What experiments need: data sets, exact scores, small networks, distances and pictures."""
