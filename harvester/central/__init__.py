"""Clients of the central services; each is one file behind one port."""
