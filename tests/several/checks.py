"""What two processes do in the tests: ``python checks.py <folder> <check> ...``, as torchrun would start it.

Each check returns data, which this process writes to ``<folder>/<rank>.pt`` by the name of the check.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv import processes, run_recbole_adv
from recbole_adv.environment.revised import RevisedAssignment
from recbole_adv.errors import RecBoleAdvError
from recbole_adv.options import technique_names
from recbole_adv.trainer.averaging import agree_after_move, agree_on_buffers, average_gradients

# By its path: pytest knows several modules of this name.
_spec = importlib.util.spec_from_file_location(
    "tiny_runs", Path(__file__).parents[1] / "conftest.py"
)
_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runs)
Tiny, tiny_settings = _runs.Tiny, _runs.tiny_settings

KEYS = {
    "embedding_attack_start_epoch": 0,
    "gradient_accumulation_batches": 2,
    "clip_norm_max_norm": 0.01,
    "ema_decay": 0.5,
    "gradient_noise_embeddings": True,
    "gradient_centralization_embeddings": True,
    "clippy_embeddings": "rows",
    "monitor_sharpness_interval": 1,
}
STATIC = {"train_negatives": "static", "learner": "sgd", "learning_rate": 1.0}
UNEVEN = {"train_batch_size": 127}  # 960 rows: 7 batches of 127 and one of 71, odd
KG = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}
RUNS = {  # one epoch each, after which all processes must hold the same model
    "shared_graph": ("EIIL", {"backbone": "NeuMF", "dropout_prob": 0.2, "max_start_epoch": 0}),
    "separate_forward": (
        "EIIL",
        {"backbone": "NeuMF", "dropout_prob": 0.2, "game_update": "separate_forward"},
    ),
    "closed form": ("GroupDRO", {"environment_source": "user_activity", "n_environments": 3}),
    "own data": ("AdvInfoNCE", {"max_data": "fresh", "max_unit": "step"}),
    "revised": ("VREx", {"environment_source": "loss", "epochs": 2}),
    "InvPref": (
        "InvPref",
        {"train_neg_sample_args": None, "static_negatives": 1, "cluster_interval": 1},
    ),
    "BatchNorm": (
        "DCN",
        {
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "cross_layer_num": 1,
        },
    ),
    "KGTrainer": ("KTUP", {**KG, "train_rec_step": 1, "train_kg_step": 1, "epochs": 2}),
    "both kinds of rows": ("CKE", {"kg_embedding_size": 8, "train_batch_size": 100, **KG}),
    "user_uniform": ("BPR", {"train_positives": "user_uniform"}),
    "RaCTTrainer": (
        "RaCT",
        {
            "train_stage": "actor_pretrain",
            "pretrain_epochs": 1,
            "train_neg_sample_args": None,
            "mlp_hidden_size": [16],
            "latent_dimension": 8,
        },
    ),
    "MKRTrainer": ("MKR", {**KG, "low_layers_num": 1, "high_layers_num": 1}),
    "RecVAETrainer": ("RecVAE", {"train_neg_sample_args": None, "n_enc_epochs": 1}),
    "S3RecTrainer": (
        "S3Rec",
        {
            "train_stage": "pretrain",
            "pretrain_epochs": 1,
            "save_step": 1,
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": 5,
            "hidden_size": 16,
            "inner_size": 16,
            "n_layers": 1,
            "item_attribute": "shape",
            "load_col": {
                "inter": ["user_id", "item_id", "timestamp"],
                "item": ["item_id", "shape"],
            },
        },
    ),
    "sparse": (
        "BPR",
        {
            "sparse_embeddings": True,
            "techniques": ["embedding_attack", "agc", "clip_norm", "clippy", "ema"],
            "embedding_attack_start_epoch": 0,
            "clippy_embeddings": "rows",
            "epochs": 2,
        },
    ),
    "sparse game": ("EIIL", {"sparse_embeddings": True, "max_start_epoch": 0}),
    "scaler": ("NeuMF", {"enable_amp": True, "enable_scaler": True}),
    "NCLTrainer": ("NCL", {"warm_up_step": 1, "num_clusters": 2}),
    "TraditionalTrainer": ("Pop", {}),
    "ema of buffers": ("BPR", {"techniques": ["ema"], "ema_buffers": "average"}),
}


class Overflowing(BPR):
    """Its gradients are not finite on the second process, under the first scales."""

    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) * (1e35 if processes.rank() else 1.0)


class Sick(BPR):
    """Its loss is no number in one pass of the second process."""

    n_passes = 0

    def calculate_loss(self, interaction):
        Sick.n_passes += 1
        sick = processes.rank() == 1 and Sick.n_passes == 5
        return super().calculate_loss(interaction) * (torch.nan if sick else 1.0)


class Weighted(BPR):
    """A game whose losses are means over rows: ``max`` weighs the items that are fitted worst."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Embedding(self.n_items, 1)

    def rows(self, interaction):
        user, pos = interaction[self.USER_ID], interaction[self.ITEM_ID]
        user_e, pos_e = self.forward(user, pos)
        margin = (user_e * (pos_e - self.get_item_embedding(interaction[self.NEG_ITEM_ID]))).sum(-1)
        weight = 1 + self.env_generator(pos).squeeze(-1).sigmoid()
        return weight * nn.functional.softplus(-margin)

    def calculate_loss(self, interaction):
        return self.rows(interaction).mean()

    def calculate_max_objective(self, interaction):
        return self.rows(interaction).mean()


class WeightedAtOnce(Weighted):
    """The same on a shared graph."""

    def calculate_joint(self, interaction):
        loss = self.calculate_loss(interaction)
        return loss, loss


EQUAL = {  # trained by two processes and by one: the same weights
    "recbole": (BPR, {}),
    "tensor": (BPR, {"train_loader": "tensor"}),
    "separate_forward": (Weighted, {"max_learner": "sgd"}),
    "shared_graph": (WeightedAtOnce, {"max_learner": "sgd"}),
    "sparse": (BPR, {"sparse_embeddings": True}),
    "drop_last": (BPR, {"drop_last": True, "train_loader": "tensor"}),
    "clipped": (BPR, {"techniques": ["clip_norm"], "clip_norm_max_norm": 0.01}),
    "accumulated": (
        BPR,
        {"techniques": ["gradient_accumulation"], "gradient_accumulation_batches": 3},
    ),
}
LABELLED = {
    "eval_args": {"mode": "labeled"},
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": None,
    "train_neg_sample_args": None,
    "eval_batch_size": 301,
}
EVALUATIONS = {
    "full": ("BPR", {"metrics": ["Recall", "MRR", "GAUC"], "eval_batch_size": 300}),
    "one batch": ("SASRec", {"dropout_prob": 0.0}),
    "groups": (
        "BPR",
        {
            "eval_groups": ["item_popularity"],
            "popularity_metrics": True,
            "metrics": ["Recall", "GAUC", "MRR"],
            "valid_metric": "MRR@10",
            "eval_batch_size": 300,
        },
    ),
    "one chunk": ("BPR", {"eval_memory_mb": 500}),
    "sampled": ("BPR", {"eval_args": {"mode": "uni10"}, "eval_batch_size": 300}),
    "sampled, lists": (
        "BPR",
        {"eval_args": {"mode": "uni10"}, "eval_batch_size": 300, "popularity_metrics": True},
    ),
    "labels": ("FM", LABELLED),
    "labels by group": ("FM", {**LABELLED, "eval_groups": ["user_activity"]}),
}
RESUMED = {
    "backbone": "NeuMF",
    "dropout_prob": 0.3,
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
    "max_start_epoch": 1,
    "max_interval": 2,
    "techniques": ["embedding_attack", "ema"],
    "embedding_attack_preset": "freeat",
    "embedding_attack_start_epoch": 0,
}


def digest(model) -> str:
    """A hash of all that ``state_dict`` holds."""
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole.update(name.encode() + value.cpu().numpy().tobytes())
    return whole.hexdigest()


def trained(model, **settings):
    """A trainer after ``epochs`` epochs, one by default."""
    run = Tiny(model, **{"epochs": 1, "eval_step": 0, "run_dir": "run", **settings})
    return run.fit(saved=False)


# --- the checks ------------------------------------------------------------------------------------


def collectives():
    """The least of what all else is made of."""
    rank = processes.rank()
    first = {"who": rank}
    table = torch.full((2,), float(rank))
    processes.mean_([table, torch.ones(3, dtype=torch.float64)])
    rows = processes.gathered(torch.full((rank + 1, 2), rank))
    joined = processes.joined_rows(torch.full((2,), rank) if rank else None)
    seeds = processes.own_seed(7)
    return {
        "from_first": processes.from_first(first),
        "mean": table,
        "gathered": rows,
        "joined": joined,
        "nothing": processes.joined_rows(None),
        "seed": seeds,
    }


def gradients():
    """Of six parameters: both have one, one has one, none has one, and the same with sparse ones."""
    rank = processes.rank()
    parameters = [nn.Parameter(torch.zeros(4, 2)) for _ in range(6)]
    parameters[0].grad = torch.full((4, 2), 1.0 + 2 * rank)
    if rank:
        parameters[1].grad = torch.full((4, 2), 8.0)
    values = torch.tensor([[2.0, 2.0], [4.0, 4.0]])
    rows = torch.tensor([[0, 0]]) if rank else torch.tensor([[0, 3]])
    parameters[3].grad = torch.sparse_coo_tensor(rows, values, (4, 2))
    if not rank:
        parameters[4].grad = torch.sparse_coo_tensor(torch.tensor([[1, 2]]), values, (4, 2))
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), values, (4, 2))
    parameters[5].grad = torch.ones(4, 2) if rank else sparse
    average_gradients(parameters)
    return [p.grad for p in parameters]


def buffers():
    """BatchNorm's statistics are averaged, others are the first one's; moves are averaged."""
    rank = processes.rank()
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1, bias=False))
    model[0].running_mean.fill_(rank)
    model[1].register_buffer("counter", torch.tensor([5 + rank]))
    agree_on_buffers(model)
    after = {name: value.clone() for name, value in model.named_buffers()}
    model[1].weight.data.fill_(2.0 * rank)
    agree_after_move(model[1].parameters(), model)
    rows = RevisedAssignment(2, torch.tensor([0, 1, 0, 1]))
    rows.seen[:] = torch.tensor([0.5, torch.nan, torch.nan, torch.nan])
    figure = torch.tensor([4.0 + 2 * rank, 8.0])  # row 1 by both, row 2 or 0 by one
    rows.see(torch.tensor([1, 0 if rank else 2]), figure, figure)
    agree_on_buffers(rows)
    return {**after, "moved": model[1].weight.detach(), "seen": rows.seen}


def rows_read():
    """The training rows of two epochs, and the negatives, by both loaders."""
    found = {}
    for loader in ("recbole", "tensor"):
        run = Tiny("BPR", train_loader=loader, run_dir="run", **UNEVEN)
        run.model.needs_row_index = True
        data = run.trainer._before_fit(run.train)
        epochs = [[b for b in data] for _ in range(2)]
        found[loader] = {
            "rows": [torch.cat([b["inter_idx"] for b in epoch]) for epoch in epochs],
            "sizes": [len(b) for b in epochs[0]],
            "length": len(data),
            "negatives": epochs[0][0]["neg_item_id"],
        }
    return found


def equal():
    """Weights and losses of two epochs on the same batches."""
    found = {}
    for name, (model, settings) in EQUAL.items():
        trainer = trained(model, epochs=2, **{**STATIC, **UNEVEN, **settings})
        weights = {n: v.clone() for n, v in trainer.model.state_dict().items()}
        found[name] = {"weights": weights, "loss": dict(trainer.train_loss_dict)}
    return found


def same_everywhere():
    """Hashes after runs of every kind; for what is refused, the sentence."""
    found = {}
    for name, (model, settings) in RUNS.items():
        try:
            trainer = trained(model, **settings)
            found[name] = digest(trainer.model)
        except RecBoleAdvError as error:
            found[name] = str(error)
    trainer = trained(Overflowing, enable_amp=True, enable_scaler=True)
    found["overflow"] = digest(trainer.model)
    found["scale"] = trainer.scalers["min"].get_scale()
    return found


def techniques():
    """Hashes after an epoch of BPR with each technique, and with all that go together."""
    found = {}
    for name in technique_names():
        model = "NeuMF" if name == "r_drop" else "BPR"
        keys = (
            {"techniques": [name], "dropout_prob": 0.2}
            if model == "NeuMF"
            else {"techniques": [name]}
        )
        trainer = trained(model, **{**KEYS, **keys, "train_batch_size": 300})
        found[name] = digest(trainer.model)
        with trainer._evaluation_weights():
            found[name] += digest(trainer.model)
    return found


def rolled_back():
    """A loss that is nan on the second process only, in its fifth step."""
    Sick.n_passes = 0
    keys = {"techniques": ["divergence_guard"], "divergence_guard_interval": 1}
    trainer = trained(Sick, **keys, divergence_guard_patience=1, train_batch_size=64)
    counted = trainer.techniques["min"]["divergence_guard"].totals
    return {"model": digest(trainer.model), "counted": counted, "factor": trainer.rate_factor}


def closed_form():
    """GroupDRO's weights after a move on the first batch."""
    keys = {"environment_source": "user_activity", "n_environments": 3, "group_dro_eta": 1.0}
    run = Tiny("GroupDRO", run_dir="run", learning_rate=0.0, train_negatives="static", **keys)
    batch = run.batch()
    torch.nn.init.normal_(run.model.backbone.user_embedding.weight, generator=torch.manual_seed(0))
    run.model.max_step(batch)
    return {"weight": run.model.weight, "running_risk": run.model.running_risk}


def evaluations():
    """Metrics of untrained models."""
    found = {}
    for name, (model, settings) in EVALUATIONS.items():
        data = "two_worlds" if "benchmark_filename" in settings else "checkerboard"
        run = Tiny(model, data, run_dir="run", **settings)
        run.trainer.prepare_evaluation(run.train, run.valid, {}, [run.test])
        run.trainer.eval_collector.data_collect(run.train)
        found[name] = run.trainer.evaluate(run.test, load_best_model=False)
    return found


def resumed():
    """Four epochs at once, and two and two."""
    settings = tiny_settings("EIIL", **RESUMED)

    def run(run_dir, epochs):
        given = {**settings, "epochs": epochs, "run_dir": run_dir}
        return run_recbole_adv("EIIL", "checkerboard", config_dict=given)

    whole, _ = run("whole", 4), run("halves", 2)
    return [whole, run_recbole_adv(resume="halves", config_dict={"epochs": 4})]


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    with processes.joined(torch.device("cpu")):
        found = {name: globals()[name]() for name in names}
    torch.save(found, Path(folder) / f"{processes.place().rank}.pt")


if __name__ == "__main__":
    given, sys.argv = sys.argv[1:], ["checks"]  # RecBole reads them
    main(*given)
