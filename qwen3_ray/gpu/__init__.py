"""What every Triton kernel is built on; imports nothing of the engine."""
