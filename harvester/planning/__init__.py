"""Pure planning: facts in, decisions out. No I/O, no clock, no randomness of its own."""
