"""Parsers against captured profiles, and profilers against real programs."""
