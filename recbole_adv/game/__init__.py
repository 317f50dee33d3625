"""Who moves what, when, and with which optimizer."""
