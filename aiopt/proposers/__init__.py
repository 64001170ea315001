"""What makes patches: each module here is one proposer (see aiopt.protocols.Proposer)."""
