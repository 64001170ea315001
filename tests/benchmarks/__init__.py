"""What aiopt costs, beside what is there to compare it with: `python -m tests.benchmarks`."""
