"""A site that nothing reaches but files carried by hand: points go in, results come out."""
