"""The experiments that the method is known for, in one command each: `cldfast study NAME`."""
