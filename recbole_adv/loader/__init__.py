"""Training data as tensors: batches, negatives and sequences without a loop over rows."""

from recbole_adv.loader.choice import training_loader
from recbole_adv.loader.sampler import tensor_samplers
from recbole_adv.loader.sequences import build_sequences_lazily

__all__ = ["build_sequences_lazily", "tensor_samplers", "training_loader"]
