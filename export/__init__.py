"""Export: a finished run becomes a bundle that is verified against torch. `show` and `verify` need no torch."""
