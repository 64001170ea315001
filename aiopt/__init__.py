"""aiopt makes real programs faster and smaller, and keeps only what it can prove."""

__version__ = "0.1.0"
