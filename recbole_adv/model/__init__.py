"""What RecBole's users come for."""
