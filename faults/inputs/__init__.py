"""What is fuzzed: each kind makes inputs of a seed, has them read by what reads them, and says what may come of it."""
