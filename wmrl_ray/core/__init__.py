"""Layer 0: the algorithms. Imports torch and numpy only; never prints, logs, reads files or picks a device."""
