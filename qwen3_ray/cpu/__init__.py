"""What kernels for the CPU are made with: a compiler, threads, and synchronisation."""
