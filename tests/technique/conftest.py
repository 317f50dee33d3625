"""A model with sparse gradients, which no model of RecBole's has."""

import pytest
from recbole.model.general_recommender import BPR


class SparseBPR(BPR):
    """BPR whose tables have sparse gradients."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for table in (self.user_embedding, self.item_embedding):
            table.sparse = True


@pytest.fixture
def sparse_bpr():
    """The class."""
    return SparseBPR
