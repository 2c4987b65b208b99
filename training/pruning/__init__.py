"""Taking weights and channels out of a network: one criterion a file, and what removes them."""
