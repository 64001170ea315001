"""Where a target runs: each module here is one backend (see aiopt.protocols.Backend)."""
