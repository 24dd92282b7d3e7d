"""Comparisons that the policy did not write, over the same documents as its own; and WPO with weights of one side."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.encoding import encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch, collate
from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.logps import ResponseLogps, response_logps
from rlhf_lab.engine.models import disable_dropout, eval_mode
from rlhf_lab.objective import Objective, preference_loss, wpo_weights
from rlhf_lab.studies.text.summaries import BATCH_SIZE, MAX_NEW_TOKENS, World, draw_summaries
from rlhf_lab.training.loop import Losses, LossFunction, TrainingResult, train
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.workflow.candidates import Candidate, response_text
from rlhf_lab.workflow.pairs import Pair, make_pairs
from rlhf_lab.workflow.prompts import prompt_ids, prompt_text
from rlhf_lab.workflow.settings import PairSettings

CANDIDATES = 8
# At temperature 1 pi_0 gives the other model's summaries 7 nats a token, and WPO's pairs a mean weight of .0005: that
# would be a study of Adam's epsilon. At .4 the weights are about a sixth of the on-policy ones.
OTHER_MODEL, OTHER_TEMPERATURE = "tiny", 0.4


def pair_sets(world: World) -> dict[str, list[Pair]]:
    """Pairs by data set, over the same documents: those that give a pair in all three.

    Raises ValueError if there is no such document.
    """
    own = draw_summaries(world, world.model, world.documents, CANDIDATES)
    sets = {
        "on": make_pairs(own, PairSettings())[0],
        "off": make_pairs(other_summaries(world, world.documents), PairSettings())[0],
        "hybrid": hybrid_pairs(world, own),
    }
    common = set.intersection(*({pair.document for pair in pairs} for pairs in sets.values()))
    if not common:
        raise ValueError(f"none of the {len(world.documents)} documents gives a pair in each of {', '.join(sets)}")
    return {name: [pair for pair in pairs if pair.document in common] for name, pairs in sets.items()}


def other_summaries(world: World, documents: Sequence[DocstringPair]) -> list[list[Candidate]]:
    """The other policy's summaries in pi_0's tokens. Those that were cut are left out: they have no end to learn."""
    folder = small_model_path(OTHER_MODEL)
    model, tokenizer = load_model(folder), load_tokenizer(str(folder))
    prompts, eos = [prompt_ids(tokenizer, d.description) for d in documents], tokenizer.eos_token_id
    options = {"n": CANDIDATES, "temperature": OTHER_TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS, "bf16": None}
    drawn = sample(model, prompts, seed=world.seed, eos_token_id=eos, **options)
    texts = [[response_text(tokenizer, tokens) for tokens in row if tokens[-1] == eos] for row in drawn]
    summaries = []
    for row, document in zip(texts, documents, strict=True):
        summaries.append([written(world, text, document) for text in row if text])
    return summaries


def hybrid_pairs(world: World, own: Sequence[Sequence[Candidate]]) -> list[Pair]:
    """The best of the author's summary and pi_0's own, against a random one of pi_0's own with less reward.

    The author's summary is what the content is compared with, so that it is the chosen one, but for poor style.
    Source: WPO (2406.11827), its hybrid data: policy samples and one output of a stronger model.
    """
    chance, pairs = random.Random(f"{world.seed}/hybrid"), []
    for index, (row, document) in enumerate(zip(own, world.documents, strict=True)):
        best = max([written(world, document.summary, document), *row], key=lambda c: c.reward)
        worse = [candidate for candidate in row if candidate.reward < best.reward]
        if worse:
            pairs.append(Pair(index, best, chance.choice(worse)))
    return pairs


def written(world: World, text: str, document: DocstringPair) -> Candidate:
    """Someone else's text as if pi_0 had sampled it: its tokens, EOS last, and its gold reward."""
    ((reward,),) = world.gold.load()([prompt_text(document.description)], [[text]], [document.summary])
    return Candidate(encode_response(text, world.tokenizer), text, reward)


@torch.no_grad()
def data_facts(world: World, pairs: Sequence[Pair], examples: Sequence[Example]) -> dict[str, float]:
    """How far the pairs are from pi_0, and how far apart their two responses are, as means over pairs.

    chosen_logp, rejected_logp: log pi_0 per token, nats. effective: (sum w)^2 / sum w^2, the number of pairs that
    WPO's weights under pi_0 leave in effect.
    """
    batches = [collate(examples[i : i + BATCH_SIZE]) for i in range(0, len(examples), BATCH_SIZE)]
    with eval_mode(world.model):
        found = [response_logps(world.model, batch, weighting="sampled") for batch in batches]
    per_token = torch.cat([policy.logps / policy.lengths for policy in found]).mean(0)
    weights = torch.cat([side_weights(policy, (0, 1)).clamp(max=1) for policy in found])
    return {
        "pairs": len(pairs),
        "effective": float(weights.sum() ** 2 / (weights**2).sum()),
        "chosen_reward": float(np.mean([pair.chosen.reward for pair in pairs])),
        "rejected_reward": float(np.mean([pair.rejected.reward for pair in pairs])),
        "chosen_logp": float(per_token[0]),
        "rejected_logp": float(per_token[1]),
    }


def side_weights(policy: ResponseLogps, sides: Sequence[int]) -> Tensor:
    """[B], the product of the WPO weights of `sides`: 0 for chosen, 1 for rejected."""
    each = [wpo_weights(policy.token_logps[:, k], policy.alignment[:, k], policy.mask[:, k]) for k in sides]
    return torch.stack(each).prod(0)


def train_weighted(
    folder: Path,
    examples: Sequence[Example],
    objective: Objective,
    sides: Sequence[int],
    settings: TrainingSettings,
    cache_dir: str | Path,
) -> TrainingResult:
    """`train_preference` of the model in `folder`, with the WPO weights of `sides` only; see weighted_loss_fn."""
    model = load_model(folder)
    disable_dropout(model)
    ref_logps = reference_logps(model, examples, cache_dir=cache_dir, bf16=settings.bf16, disable_tqdm=True)
    return train(model, examples, weighted_loss_fn(objective, sides, ref_logps), settings)


def weighted_loss_fn(objective: Objective, sides: Sequence[int], ref_logps: Tensor) -> LossFunction:
    """w * [ -log sigma(margin) ] with w the product of the weights of `sides`; (0, 1) is WPO.

    ref_logps: [N, 2]. sides: as in side_weights. The clamp at 1 is on the product, as in WPO.
    """

    def loss_fn(model, batch: Batch, rows: Tensor) -> Losses:
        policy, ref = response_logps(model, batch, weighting=objective.weighting), ref_logps[rows]
        logps, weights = policy.logps, side_weights(policy, sides)
        result = preference_loss(objective, logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1], weights=weights)
        metrics = {"wpo/weight_mean": result.weights, "rewards/margins": result.margins}
        return Losses(result.loss, torch.ones_like(result.loss), metrics)

    return loss_fn
