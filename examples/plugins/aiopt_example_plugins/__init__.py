"""Plug-ins for aiopt, one module each."""
