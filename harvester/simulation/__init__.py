"""A simulated cluster behind the production seams."""
