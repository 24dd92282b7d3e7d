"""A language model in which every token's log-prob is chosen by hand, in an architecture that any trainer takes.

A Llama without layers whose embeddings are one-hot is a table: log pi(next | current) = log softmax(W[:, current]).
Every token of a batch stands once, so the gradient of W tells, exactly, the gradient of each position's log-prob:

    dL/dW[v, current] = sum over next of c(current, next) * (1[v = next] - pi(v | current))

Two tokens that no text has, REST, take what is left of each distribution: they give sum c, and then each c.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab.xray.pairs import ExactPairs, Observed

PAD, EOS, BOS, UNK = range(4)
REST = (4, 5)
SHARES = (2 / 3, 1 / 3)  # unequal, so that the gradient of sum_v pi(v)^2 is none of a token's log-prob
FIRST_WORD = 6
NEVER = -60.0


class Step(NamedTuple):
    """One prediction: token `next` after token `current`, at [side, row, position] of the pairs."""

    current: int
    next: int
    side: int
    row: int
    position: int


@dataclass(frozen=True)
class Layout:
    """Texts for pairs: rows of prompt, chosen and rejected as words, and all of their predictions."""

    rows: tuple[dict[str, str], ...]
    steps: tuple[Step, ...]
    vocabulary: int


def lay_out(pairs: ExactPairs) -> Layout:
    """Every pair gets two words of prompt and its own words in each response; the last token of a response is EOS."""
    rows, steps, word = [], [], FIRST_WORD
    for row, lengths in enumerate(pairs.lengths.T.tolist()):
        prompt, word = [word, word + 1], word + 2
        steps.append(Step(prompt[0], prompt[1], 0, row, 1))
        texts = []
        for side, length in enumerate(lengths):
            words, word = list(range(word, word + length - 1)), word + length - 1
            chain = [prompt[1], *words, EOS]
            steps += [Step(chain[i], chain[i + 1], side, row, 2 + i) for i in range(length)]
            texts.append(words)
        names = zip(("prompt", "chosen", "rejected"), (prompt, *texts), strict=True)
        rows.append({name: "".join(f" w{i}" for i in ids) for name, ids in names})
    return Layout(tuple(rows), tuple(steps), word)


def log_table(layout: Layout, logps: Tensor) -> Tensor:
    """log pi(next | current), [V, V]; logps: [2, B, T]. Tokens that follow nothing here are followed by anything."""
    size = layout.vocabulary
    table = torch.full((size, size), -float(torch.tensor(float(size)).log()), dtype=torch.float64)
    for current in {step.current for step in layout.steps}:
        table[current] = NEVER
    for step in layout.steps:
        table[step.current, step.next] = logps[step.side, step.row, step.position]
    for current in {step.current for step in layout.steps}:
        left = 1 - table[current].exp().sum()
        if left <= 0:
            raise ValueError("log-probs of the first tokens of both responses need probabilities whose sum is below 1")
        for token, share in zip(REST, SHARES, strict=True):
            table[current, token] = torch.log(share * left)
    return torch.log_softmax(table, -1)


def mean_alignments(pairs: ExactPairs) -> dict[str, Tensor]:
    """[2, B] means over tokens of log sum_v pi(v)^2, of log max_v pi(v), and 0."""
    layout = lay_out(pairs)
    table = log_table(layout, pairs.policy)
    per_token = {"sampled": torch.logsumexp(2 * table, -1), "greedy": table.amax(-1), "likelihood": 0 * table[0]}
    found = {name: torch.zeros(pairs.lengths.shape, dtype=torch.float64) for name in per_token}
    for step in layout.steps:
        if step.position > 1:
            for name, values in per_token.items():
                found[name][step.side, step.row] += values[step.current]
    return {name: total / pairs.lengths for name, total in found.items()}


class WatchedEmbedding(nn.Embedding):
    """One-hot embeddings with dropout behind them, that remember the ids which they were given."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__(size, size, _weight=torch.eye(size))
        self.dropout = nn.Dropout(dropout)
        self.seen: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        """ids -> one-hot vectors, some of them 0 in training mode."""
        self.seen.append(input.detach().clone())
        return self.dropout(super().forward(input))


def bigram_model(table: Tensor, dropout: float = 0.0) -> LlamaForCausalLM:
    """The model whose logits are `table`, [V, V]; only the table is trained."""
    size = len(table)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=2,
        num_hidden_layers=0,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    model = LlamaForCausalLM(config)
    model.set_input_embeddings(WatchedEmbedding(size, dropout))
    with torch.no_grad():
        model.model.norm.weight.fill_(size**-0.5)  # the norm makes sqrt(V) of a one
        model.lm_head.weight.copy_(table.T)
    for parameter in (model.model.norm.weight, model.get_input_embeddings().weight):
        parameter.requires_grad_(False)
    return model


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One word, one token; BOS before each text."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"w{i}" for i in range(4, size))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def read_gradient(layout: Layout, pairs: ExactPairs, weight: Tensor, gradient: Tensor) -> Observed:
    """dL/d log-prob of each position, from the table's weights and gradient, [V next, V current] both.

    A prompt's gradient is the sum over both responses. stray: the largest entry that is not explained, over the
    largest.
    """
    p, g = torch.softmax(weight.double(), 0).T, gradient.double().T  # [current, next]
    total = -g[:, REST[0]] / p[:, REST[0]]
    each = g + total[:, None] * p  # c where something follows, 0 elsewhere
    found = torch.zeros_like(pairs.policy)
    explained = torch.zeros_like(g)
    for step in layout.steps:
        found[step.side, step.row, step.position] = each[step.current, step.next]
        explained[step.current, step.next] = each[step.current, step.next]
    openers = [int(row["prompt"].split()[0][1:]) for row in layout.rows]
    known = [(BOS, token) for token in openers] + [(current, PAD) for current in (EOS, PAD)]
    for current, following in known:
        explained[current, following] = each[current, following]
    predicted = explained - explained.sum(1, keepdim=True) * p
    stray = float((predicted - g).abs().max() / g.abs().max().clamp(min=1e-12))
    padding = float(explained[[EOS, PAD], PAD].abs().sum())
    noise = 1e-4 * float(found.abs().max())
    return Observed(found, padding=padding if padding > noise else 0.0, stray=stray)
