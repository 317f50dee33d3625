"""What ``embedding_attack`` is made of: the ball, the tables, the places of a perturbation."""
