"""One training run: what it is asked to do, what it says while it goes, and the folder that records it."""
