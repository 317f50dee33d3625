r"""WassersteinCritic: a network generates a user's vector, another tells how plausible it is.

References:
    Chae, Kang, Kim, Lee, "CFGAN: A Generic Collaborative Filtering Framework based on Generative
    Adversarial Networks", CIKM 2018.
    Arjovsky, Chintala, Bottou, "Wasserstein Generative Adversarial Networks", ICML 2017
    (arXiv 1701.07875).
    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of Wasserstein GANs",
    NeurIPS 2017 (arXiv 1704.00028).

No official code: CFGAN's vectors, masks and zero reconstruction with the critic of WGAN or WGAN-GP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from recbole.model.abstract_recommender import AutoEncoderMixin, GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_adv.game.player import Player

Critic = Callable[[Tensor, Tensor], Tensor]


def distance(critic: Critic, condition: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """mean f(real) - mean f(fake): at its largest over 1-Lipschitz f, the Wasserstein distance.

    condition: [B, C]; real, fake: [B, I].   Returns a scalar.
    """
    return critic(condition, real).mean() - critic(condition, fake).mean()


def gradient_penalty(
    critic: Critic, condition: Tensor, real: Tensor, fake: Tensor, one_sided: bool = False
) -> Tensor:
    """mean (|df/dx| - 1)^2 at points drawn between real and fake (WGAN-GP).

    With weight w the best critic in one dimension has the slope 1 + d / 2w at distance d. A critic
    that begins with the slope -1 is stuck there, since it would have to pass 0; ``one_sided`` is
    mean max(0, |df/dx| - 1)^2 (WGAN-LP, Petzka et al., ICLR 2018), which lets it pass.

    condition: [B, C]; real, fake: [B, I].   Returns a scalar.
    """
    share = torch.rand(len(real), 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real, share).requires_grad_()
    score = critic(condition, between).sum()
    # The penalty is a term of the critic's loss, hence the graph of its gradient.
    (gradient,) = torch.autograd.grad(score, between, create_graph=True)
    # At a gradient of 0 the norm has no derivative.
    excess = (gradient.square().sum(-1) + 1e-12).sqrt() - 1
    return (excess.clamp(min=0) if one_sided else excess).square().mean()


class Draw(NamedTuple):
    """What is random in a batch: all steps on it see the same.

    real: [U, I], the users' vectors; condition: [U, I], the part of them that is shown; mask:
    [U, I], the entries that count; noise: [U, Z].
    """

    real: Tensor
    condition: Tensor
    mask: Tensor
    noise: Tensor


class Network(nn.Module):
    """A multilayer perceptron of two tensors side by side."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes, sizes[1:]):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """first: [B, F]; second: [B, S].   Returns [B, last size]."""
        return self.layers(torch.cat([first, second], dim=-1))


class WassersteinCritic(GeneralRecommender, AutoEncoderMixin):
    r"""Two networks that feed each other, two losses, two optimizers.

    c is a user's vector of 0 and 1, c' what is left of it when ``dropout_prob`` of its ones are
    hidden, z noise (``noise_size``, 0 as in CFGAN by default), m the mask of the ones of c and of a
    share ``unobserved_ratio`` of its zeros, y = m G(c', z) the generated vector::

        critic:     mean D(c', y) - mean D(c', c)  [+ penalty_weight GP]
        generator:  -mean D(c', y) + reconstruction_weight mean_u sum_j m_j (G(c', z)_j - c_j)^2

    The critic's y has no graph; the generator learns through the critic, which the engine freezes
    in its turn. ``lipschitz: clip`` keeps the critic's parameters in +-clip_value after each step,
    ``gradient_penalty`` (WGAN-GP) and ``one_sided_penalty``, the default, add GP. WGAN-GP's critic
    may start the wrong way round and stay so: its distance then remains negative.
    Items are ranked by G(c, 0), the whole history and no noise.

    ``critic_steps: 3`` takes three critic steps on each batch and then one of the generator;
    ``generator_interval: 3`` with ``critic_steps: 1`` has the critic on three batches instead.
    c', m and z belong to the batch. y is computed once for all the critic's steps on it and anew as
    soon as the generator has moved, which gives the gradients of computing it each time.

    Deviations from CFGAN: a critic instead of a discriminator; the generator sees part of what it
    is to generate, without which it tends to the identity (arXiv 2201.01815); one mask for the
    critic's view and the zero reconstruction, redrawn in each batch, not epoch; reconstruction of
    the ones too; users are those of a batch of interactions, so active ones come more often.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.noise_size, self.hidden_prob = config["noise_size"], config["dropout_prob"]
        self.unobserved_ratio = config["unobserved_ratio"]
        self.reconstruction_weight = config["reconstruction_weight"]
        self.clip_value = config["clip_value"] if config["lipschitz"] == "clip" else None
        self.penalty_weight = 0.0 if self.clip_value is not None else config["penalty_weight"]
        self.one_sided = config["lipschitz"] == "one_sided_penalty"
        self.build_histroy_items(dataset)
        n, hidden = self.n_items, config["generator_hidden_size"]
        self.generator = Network([n + self.noise_size, *hidden, n])
        self.critic = Network([2 * n, *config["critic_hidden_size"], 1])
        self._drawn: tuple[Any, Draw] | None = None
        self._generated: tuple[Any, Draw, Tensor] | None = None
        self.register_buffer("last_distance", torch.zeros(()))

    def players(self) -> list[Player]:
        """The critic, which moves first, and the generator."""
        networks = {"critic": self.critic, "generator": self.generator}
        parameters = {name: tuple(network.parameters()) for name, network in networks.items()}
        return [
            Player("critic", parameters["critic"], self.critic_loss, project=self.clip_critic),
            Player("generator", parameters["generator"], self.generator_loss),
        ]

    # --- the two losses -------------------------------------------------------------------------

    def critic_loss(self, interaction):
        draw = self.draw(interaction)
        fake = self.generated(draw)
        apart = distance(self.critic, draw.condition, draw.real, fake)
        self.last_distance.copy_(apart.detach())
        if not self.penalty_weight:
            return -apart
        penalty = gradient_penalty(self.critic, draw.condition, draw.real, fake, self.one_sided)
        return -apart, self.penalty_weight * penalty

    def generator_loss(self, interaction):
        draw = self.draw(interaction)
        score = self.generator(draw.condition, draw.noise)
        plausible = self.critic(draw.condition, draw.mask * score).mean()
        error = (draw.mask * (score - draw.real).square()).sum(-1).mean()
        return -plausible, self.reconstruction_weight * error

    def clip_critic(self) -> None:
        """Keep the critic's parameters in their box."""
        if self.clip_value is not None:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.clip_value, self.clip_value)

    # --- what is kept within a batch ------------------------------------------------------------

    def draw(self, interaction) -> Draw:
        """The users of a batch with all that is random about them, drawn once."""
        # The batch itself is kept, because an id may come again.
        if self._drawn is None or self._drawn[0] is not interaction:
            real = self.get_rating_matrix(interaction[self.USER_ID].unique())
            chance = torch.rand((2, *real.shape), device=real.device)
            condition = real * (chance[0] >= self.hidden_prob)
            mask = torch.maximum(real, (chance[1] < self.unobserved_ratio).to(real.dtype))
            noise = torch.randn(len(real), self.noise_size, device=real.device)
            self._drawn = interaction, Draw(real, condition, mask, noise)
        return self._drawn[1]

    @torch.no_grad()
    def generated(self, draw: Draw) -> Tensor:
        """y [U, I] without a graph; computed anew when the generator, or the draw, is another."""
        # An optimizer's step, like every write in place, raises a tensor's version.
        state = [(id(p), p._version) for p in self.generator.parameters()]
        kept = self._generated
        if kept is None or kept[0] != state or kept[1] is not draw:
            fake = draw.mask * self.generator(draw.condition, draw.noise)
            self._generated = kept = state, draw, fake
        return kept[2]

    # --- recommending ---------------------------------------------------------------------------

    def scores(self, user: Tensor) -> Tensor:
        """Scores of all items [B, I]."""
        vector = self.get_rating_matrix(user)
        return self.generator(vector, vector.new_zeros(len(vector), self.noise_size))

    def predict(self, interaction):
        item = interaction[self.ITEM_ID].unsqueeze(-1)
        return self.scores(interaction[self.USER_ID]).gather(1, item).squeeze(-1)

    def full_sort_predict(self, interaction):
        return self.scores(interaction[self.USER_ID]).view(-1)

    def log_values(self) -> dict[str, Tensor]:
        """For the log: the critic's distance on its last batch."""
        return {"critic_distance": self.last_distance}
