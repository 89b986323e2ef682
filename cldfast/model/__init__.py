"""A network with its process, parameterisation and data scale as one object, and its folder."""
