"""The curves of runs as PNG; needs matplotlib, which is imported when something is drawn."""
