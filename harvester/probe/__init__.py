"""``harvester site probe``: a short job measures what a site file claims, and corrects it."""
