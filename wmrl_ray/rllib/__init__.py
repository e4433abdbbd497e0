"""Layer 3: the shells that put Agent, Replay and environments on Ray. The only package that imports ray."""
