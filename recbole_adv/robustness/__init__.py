"""How much a recommender loses when its embeddings, its training data or its input are attacked."""
