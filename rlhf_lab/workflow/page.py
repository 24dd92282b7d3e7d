"""report.md of a run: what was done, the figure, every table, how to read them, samples and all settings."""

from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.workflow.report import (
    JUDGES,
    contrast_table,
    corpus_note,
    cost_table,
    is_loop,
    parts_table,
    reward_table,
    samples_text,
    seconds_table,
    verdicts,
)


def markdown(results: dict, figure: str, alt: str) -> str:
    """report.md: what was done, the figure, tables of rewards, costs and times, samples, and all settings."""
    settings = results["settings"]
    sentences = "\n".join(f"- {sentence}" for sentence in [*verdicts(results), *corpus_note(results)])
    sections = ["# Preference optimisation", what_was_done(results), sentences, f"![{alt}]({figure})"]
    for judge in reversed(results["judges"]):
        for decoding, note in (
            ("sampled", f"{settings['eval_samples']} draws a prompt at temperature 1"),
            ("greedy", "the most likely token at every step"),
        ):
            title = f"## {JUDGES[judge].capitalize()} reward of {decoding} responses: {note}"
            sections += [title, markdown_table(reward_table(results, judge, decoding))]
    if results["policies"][0]["parts"]["greedy"]:
        for decoding in ("sampled", "greedy"):
            title = f"## What the reward of {decoding} responses is made of"
            sections += [title, markdown_table(parts_table(results, decoding))]
    if results["contrasts"]:
        sections += ["## The methods against each other", markdown_table(contrast_table(results))]
    sections += ["## What it cost", markdown_table(cost_table(results))]
    sections += ["## Seconds of each stage", markdown_table(seconds_table(results))]
    sections += ["## How to read it", HOW_TO_READ, "## Samples", "Taken by the seed, not chosen."]
    sections += [f"```text\n{samples_text(results)}\n```", "## Settings"]
    facts = settings | results["training"]
    sections.append(markdown_table([("setting", "value"), *((name, str(value)) for name, value in facts.items())]))
    objectives = [("objective", "settings"), *((name, str(value)) for name, value in results["objectives"].items())]
    sections.append(markdown_table(objectives))
    sections.append(markdown_table([("version", ""), *results["versions"].items()]))
    return "\n\n".join(sections) + "\n"


def what_was_done(results: dict) -> str:
    """The run in a few sentences: prompts, candidates, pairs, judge, what was measured on, and how long it took."""
    settings = results["settings"]
    loop = f"{settings['iterations']} iterations of " if is_loop(results) else ""
    labels = settings["labels"]
    if labels == "bradley-terry":
        labels += f" at temperature {settings['label_temperature']}"
    shared = " Every method learned from the same pairs" if len(results["objectives"]) > 1 else ""
    if shared:
        own = "its own policies' alone" if settings["data"] == "newest" else "its own policies' beside them"
        shared += f" at first, later from {own}." if is_loop(results) else "."
    proxy = "gold" in results["judges"] and settings["gold"] != settings["judge"]
    gold = f", true reward {settings['gold']}" if proxy else ""
    split = " of the validation split, to choose settings by" if settings["eval_split"] == "validation" else ""
    return (
        f"{loop}{settings['prompts']} prompts, {settings['candidates']} candidates each at temperatures "
        f"{', '.join(map(str, settings['temperatures']))}; pairs {settings['pairs']}, {settings['pairs_per_prompt']} a "
        f"prompt; judge {settings['judge']}{gold}, labels {labels}.{shared} Measured on {settings['eval_prompts']} "
        f"held-out prompts{split}. All stages together took {results['seconds']:.0f} s."
    )


HOW_TO_READ = """\
- SFT is pi_0, where every policy starts. Intervals: 95%, bootstrap over held-out prompts; differences are paired by
  prompt. They do not cover another draw of the training data: for that run several seeds.
- Gold is the true reward: content is ROUGE-L F1 against a human's response, style the share of the house's rules that a
  docstring's summary keeps, house their mean. Proxy is what another judge scored. Where the proxy rises and gold does
  not, the policy exploits the judge. A pairwise judge's proxy is the probability to beat SFT's response to the prompt.
- Rivals that learn nothing: SFT at lower temperatures (vs SFT at its KL: at the temperature with the policy's KL, exact
  and interpolated, a little low where the curve bends; beyond the greedy policy's KL the greedy responses), the best of
  n of its samples by the judge, its own responses of the policy's length, the prompt's first words, and a template that
  knows the style's rules.
- vs SFT at its length: SFT's responses of the nearest length at any temperature. At one length lower temperatures may
  have more reward, so that SFT itself is not at 0 there: compare with its row.
- wins: share of comparisons of responses to the same prompt that have more reward; ties count half. R-1, R-2, R-L:
  ROUGE F1. imperative, sentence, short, found: the rules of the house style.
- KL: mean over sampled responses of log pi - log pi_0, summed over the response, in nats. entropy: minus the mean
  log-prob of a sampled token, in nats. tokens: with the end-of-text token.
- ties: comparisons of equal (penalised) score; identical: the draws had too few distinct texts. Neither is trained on.
  flipped: labels against the score. equal draws: share of a prompt's draws' pairs with the same text; near 1 the
  policy has stopped exploring.
- Sampling shows the whole policy, greedy decoding only its peak: a method can raise the one and lower the other. Where
  the greedy reward falls or responses grow longer while the sampled reward rises, the method over-optimises."""
