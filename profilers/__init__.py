"""What looks inside a run: each module here is one profiler (see aiopt.protocols.Profiler)."""
