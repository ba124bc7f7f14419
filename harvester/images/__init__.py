"""Bringing container images to a site: pull, import, list, for every runtime that it can name."""
