"""Training data and outputs between the outside and the site."""
