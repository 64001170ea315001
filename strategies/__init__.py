"""What to try next: each module here is one strategy (see aiopt.protocols.Strategy)."""
