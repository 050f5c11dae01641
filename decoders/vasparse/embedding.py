"""SVCD, the contrast of VASparse, Zhuang et al., CVPR 2025 (arXiv:2501.06553, equation 6).

The model's head reads the embedding of the last token, with no layer between: what follows this
token in any text. As a processor for a plain `generate`, and as a rule for a decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from sightline.engine.early_exit import Head, embedding_scale, one_token
from sightline.logits.layers import stacked
from sightline.logits.rules import Needs, Rule, State
from sightline.model_protocol import Model
from sightline.settings import Strength, UnitInterval, wrong

RELEASED = 1.1  # alpha of the authors' code as it would run


@dataclass(frozen=True)
class EmbeddingContrastive(Rule):
    """Take off what the last token alone leads to: (1 + alpha) * l - alpha * l_phi.

    l_phi is the head on the last token's embedding, so it costs one head product. It depends on
    that token and on nothing else: the paper's masked image tokens cannot reach it, so there is
    no mask rate. With tied embeddings it is highest at the last token itself, and the contrast
    becomes a mild penalty on repeating it. Over the tokens plausible under l.

    Args:
        alpha: Contrast strength; 0 leaves the logits as they are.
        beta: Plausibility threshold in [0, 1], a share of the best probability; 0 keeps all.
        sum_to_one: False for l - alpha * l_phi, in which l keeps the weight 1.

    Differs from the authors' code, which does not run as released: see `released`.
    """

    alpha: Strength = 0.1
    beta: UnitInterval = 0.1
    sum_to_one: bool = True

    @classmethod
    def released(cls) -> "EmbeddingContrastive":
        """What the authors' code would compute if repaired: l - 1.1 * l_phi, for diagnosis.

        It takes off l_phi twice, once as log-probabilities and once as 0.1 of its logits: about
        twelve times the paper's contrast.
        """
        return cls(alpha=RELEASED, sum_to_one=False)

    @property
    def needs(self) -> Needs:
        return Needs(cut=self.beta > 0, early=embeddings if self.alpha else None)

    def combine(self, logits: Sequence[Tensor], state: State) -> Tensor:
        expert = logits[0]
        if self.alpha == 0:
            return expert
        weight = 1 + self.alpha if self.sum_to_one else 1
        return weight * expert - self.alpha * stacked(state)[0]


def embeddings(blocks: int, tied: bool) -> tuple[int, ...]:
    return (0,)


class EmbeddingContrast(LogitsProcessor):
    """Say less of what merely follows the last word, in a plain `generate`.

    The scores of `EmbeddingContrastive`, as log-probabilities over the plausible tokens: beam
    search adds them up as they are. A constant added to `scores` leaves them unchanged, so logits
    and log-probabilities, which beam search hands a processor, give the same.

    Making one runs one token through the model, to measure how it scales embeddings and logits.
    Runs after `generate`'s own processors (repetition penalty, banned tokens); as a rule in a
    decoder it contrasts before them and cuts after them. The prompt must end in text: the last
    token's embedding is looked up by its id, and an image token's id does not say which image it
    is.

    Args:
        model: The model that generates; decoder-only, with a head and token embeddings.
        alpha: Contrast strength; 0 leaves the scores as they are.
        beta: Plausibility threshold in [0, 1], a share of the best probability; 0 keeps all.
        sum_to_one: False for l - alpha * l_phi, in which l keeps the weight 1.
    """

    def __init__(
        self, model: Model, alpha: float = 0.1, beta: float = 0.1, *, sum_to_one: bool = True
    ):
        self.rule = EmbeddingContrastive(alpha, beta, sum_to_one)
        if not hasattr(model, "get_output_embeddings"):
            raise wrong("model", "the model that generates", model)
        self.embedding = model.get_input_embeddings()
        embedded, outputs = one_token(model)
        self.head = Head.fit(model, outputs.hidden_states[-1], outputs.logits)
        self.scale = embedding_scale(model, embedded, outputs.hidden_states[0])

    @classmethod
    def released(cls, model: Model) -> "EmbeddingContrast":
        """What the authors' code would compute if repaired: `EmbeddingContrastive.released`."""
        rule = EmbeddingContrastive.released()
        return cls(model, rule.alpha, rule.beta, sum_to_one=rule.sum_to_one)

    def prior(self, tokens: Tensor) -> Tensor:
        """l_phi: token ids `[B]` -> logits `[B, V]`, float32."""
        return self.head(self.embedding(tokens) * self.scale)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[B, V]`, logits or log-probabilities -> log-probabilities `[B, V]`."""
        if self.rule.needs == Needs():
            return scores
        if not self.rule.alpha:
            return self.rule([scores]).log_softmax(dim=-1)
        if input_ids.shape[1] == 0:
            raise ValueError(
                "EmbeddingContrast needs the last token's id and the prompt came as embeddings "
                "alone: pass input_ids to generate"
            )
        prior = self.prior(input_ids[:, -1]).to(scores.device)
        if prior.shape != scores.shape:
            raise ValueError(
                f"scores must be [B, V] of the model that EmbeddingContrast was made with, "
                f"{list(prior.shape)}, got {list(scores.shape)}: make one for each model"
            )
        return self.rule([scores], State(early=(prior,))).log_softmax(dim=-1)
