"""How many steps a player will take in the whole run, before the first of them."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from recbole.data.dataloader import KnowledgeBasedDataLoader

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer


def planned_epochs(trainer: AdvTrainer) -> int:
    """The epochs of the run; those of its own for a model that is pre-trained (S3Rec, RaCT)."""
    pretraining = "pretrain" in str(getattr(trainer.model, "train_stage", ""))
    return trainer.pretrain_epochs if pretraining else trainer.epochs


def planned_steps(trainer: AdvTrainer, player: Player) -> int:
    """Optimizer steps of a player in the whole run, at least 1.

    The batches of all epochs, as often as the schedule lets the player move, through its gradient
    accumulation. What cannot be known is left out: early stopping, steps that a GradScaler leaves
    out, batches that ``drop_last`` drops.
    """
    turns = trainer.schedule.turns[player.name]
    accumulation = trainer.techniques[player.name].get("gradient_accumulation")
    batches_for_a_step = accumulation.batches if accumulation is not None else 1
    first = player.name == trainer.players[0].name
    steps = taken = seen = 0  # steps, turns, batches
    for epoch in range(planned_epochs(trainer)):
        passes = batches_of_passes(trainer, epoch)
        if turns.unit == "epoch":
            due = (epoch - turns.start_epoch) % turns.interval == 0
            if due and turns.active(epoch, taken):
                taken += 1
                steps += ceil(turns.steps * passes[0] / batches_for_a_step)
            continue
        for number, batches in enumerate(passes):
            moves = (seen + batches) // turns.interval - seen // turns.interval
            seen += batches
            if not turns.active(epoch, taken) or (number and not first):
                continue
            if turns.budget is not None:
                moves = min(moves, turns.budget - taken)
            taken += moves
            steps += ceil(moves * turns.steps / batches_for_a_step)
    return max(1, steps)


def batches_of_passes(trainer: AdvTrainer, epoch: int) -> list[int]:
    """The batches of each pass that RecBole's trainer makes over the data in an epoch."""
    data = trainer.train_data
    if hasattr(trainer, "n_enc_epochs"):  # RecVAETrainer
        return [len(data)] * (trainer.n_enc_epochs + trainer.n_dec_epochs)
    if not isinstance(data, KnowledgeBasedDataLoader):
        return [len(data)]
    interactions, triples = len(data.general_dataloader), len(data.kg_dataloader)
    if hasattr(trainer, "train_rec_step"):  # KGTrainer
        rec, kg = trainer.train_rec_step, trainer.train_kg_step
        by_turns = rec is not None and kg is not None
        return [triples if by_turns and epoch % (rec + kg) >= rec else interactions]
    both = epoch % getattr(trainer, "kge_interval", 1) == 0  # MKRTrainer's, and KGATTrainer
    return [interactions, triples] if both else [interactions]
