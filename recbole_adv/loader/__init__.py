"""Training data as tensors: batches, negatives and sequences without a loop over rows."""

from recbole_adv.loader.choice import training_loader
from recbole_adv.loader.sampler import check_evaluation_draws, tensor_samplers
from recbole_adv.loader.sequences import build_sequences_lazily

__all__ = [
    "build_sequences_lazily",
    "check_evaluation_draws",
    "tensor_samplers",
    "training_loader",
]
