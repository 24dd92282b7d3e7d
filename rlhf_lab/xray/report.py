"""One page, "what this loss really is": a formula with the recovered numbers, deviations, and what is not known."""

from collections.abc import Iterator
from html import escape

from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.common.pages import plain_html
from rlhf_lab.xray.facts import Facts
from rlhf_lab.xray.run import Diagnosis

FORMATS = ("text", "markdown", "html")
KNOWN = {"squared": "IPO (2310.12036)", "hinge": "SLiC's hinge (2305.10425)"}
UNKNOWN = "not determined"


def page(diagnosis: Diagnosis, format: str = "text") -> str:
    """The whole page; format: text (for a terminal), markdown or html. Raises ValueError for another format."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: must be one of {', '.join(FORMATS)}")
    return {"text": _text, "markdown": _markdown, "html": _html}[format](diagnosis)


def four_digits(value: float) -> str:
    """Four digits, without the last one's noise."""
    return f"{float(f'{value:.4g}'):g}"


def formula(facts: Facts) -> list[str]:
    """loss = .. with the recovered numbers, and what its symbols are."""
    if facts.curve is None or facts.curve.fit in ("other", "none"):
        return ["loss = f(log-probs), with an f that is none of logistic, hinge and squared"]
    signs = "h- - h+" if facts.swapped else "h+ - h-"
    scale = "" if facts.scale is None or abs(facts.scale - 1) < 0.005 else f"{four_digits(facts.scale)} * "
    weight = "" if facts.weight in (None, "none") else f"{facts.weight} * "
    bonus = ""
    if facts.bonus:
        carrier = {"chosen": "h+", "rejected": "h-", "third": "h(third response)"}.get(facts.carrier or "", "h")
        per_token = " / tokens" if facts.bonus_unit == "mean" else ""
        bonus = f" {'-' if facts.bonus < 0 else '+'} {four_digits(abs(facts.bonus))} * {carrier}{per_token}"
    return [f"loss = {scale}{weight}{_fit(facts, signs)}{bonus}", *_symbols(facts)]


def _fit(facts: Facts, signs: str) -> str:
    beta, curve = four_digits(facts.beta), facts.curve
    if curve.fit == "squared":
        return f"({signs} - {four_digits(abs(curve.offset))})^2"
    if curve.fit == "hinge":
        return f"max(0, 1 - {beta} ({signs}))"
    shift = f" - {four_digits(curve.offset)}" if abs(curve.offset) > 1e-3 else ""
    m = f"{beta} ({signs}){shift}"
    if not facts.smoothing:
        return f"[ -log sigma({m}) ]"
    kept, flipped = four_digits(1 - facts.smoothing), four_digits(abs(facts.smoothing))
    sign = "-" if facts.smoothing > 0 else "+"
    return f"[ -{kept} log sigma(m) {sign} {flipped} log sigma(-m) ], m = {m}"


def _symbols(facts: Facts) -> Iterator[str]:
    how = {"mean": "mean over", "sum": "sum over", None: "of"}.get(facts.length, f"{facts.length} over")
    what = "log pi" if facts.reference == "none" else "log pi - log pi_ref"
    yield f"h = {how} the response's tokens of {what}" if facts.length else f"h = {what}, as it was given"
    if facts.weight not in (None, "none"):
        kept = {True: "no gradient", False: "with gradient", None: ""}[facts.detached]
        aligned = "as given" if facts.alignment == "given" else facts.alignment
        yield f"w = exp(mean over tokens of log pi - alignment), alignment: {aligned}; {kept}"


def rows(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """(question, answer) of everything that the X-ray asks."""
    facts = diagnosis.facts
    fit = "unknown" if facts.curve is None else {"other": "unknown"}.get(facts.curve.fit, facts.curve.fit)
    answers = {
        "fit": fit,
        "beta": _number(facts.beta),
        "label smoothing": _smoothing(facts),
        "over tokens": facts.length,
        "tokens that count": _counted(facts),
        "of the margin alone": _yes(facts.margin_only),
        "reference": facts.reference,
        "bonus": _bonus(facts),
        "weight": facts.weight,
        "weight without gradient": _yes(facts.detached),
        "reduction": _reduction(diagnosis),
        "pairs influence each other": _yes(facts.mixes),
        "order of pairs matters": _yes(facts.order),
        "accumulated / one batch": _number(facts.accumulation),
        "precision of sums": {"lower": "below float32"}.get(facts.precision, facts.precision),
        "dropout in the policy": _yes(facts.dropout_policy),
        "dropout in the reference": _yes(facts.dropout_reference),
        "BOS for each prompt": _number(facts.bos),
    }
    if facts.weight == "none":
        del answers["weight without gradient"]
    return [(name, UNKNOWN if answer is None else answer) for name, answer in answers.items()]


def _number(value: float | None) -> str | None:
    return None if value is None else four_digits(value)


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _smoothing(facts: Facts) -> str | None:
    acts = {True: "; the setting acts", False: "; the setting label_smoothing does nothing", None: ""}
    return None if facts.smoothing is None else four_digits(facts.smoothing) + acts[facts.smoothing_acts]


def _bonus(facts: Facts) -> str | None:
    if not facts.bonus:
        return None if facts.bonus is None else "none"
    unit = {"mean": ", per token", "sum": ", on its sum"}.get(facts.bonus_unit or "", "")
    direction = "down" if facts.bonus > 0 else "up"
    carrier = facts.carrier or "chosen or rejected"
    return f"{four_digits(abs(facts.bonus))}, pushes the {carrier} response {direction}{unit}"


def _counted(facts: Facts) -> str | None:
    if facts.length is None:
        return None
    counted = [role for role, share in facts.counted[0].items() if share]
    others = [role for role in facts.counted[0] if role not in counted]
    return f"{', '.join(counted)}; not {', '.join(others)}" if others else ", ".join(counted)


def _reduction(diagnosis: Diagnosis) -> str | None:
    each = diagnosis.target.returns == "one number per pair" and diagnosis.target.level != "trainer"
    return "none, one number per pair" if each else diagnosis.facts.reduction


def unseen(diagnosis: Diagnosis) -> list[str]:
    """Questions without an answer, and what this kind of target cannot show."""
    names = [name for name, answer in rows(diagnosis) if answer == UNKNOWN]
    if diagnosis.facts.reference == "used":
        names.append("whether the reference stays fixed")
    if diagnosis.target.level == "trainer":
        names += ["turns of a user within a response", "prompt tokens, whose gradients cancel between the responses"]
    return names


def nearest(diagnosis: Diagnosis) -> str:
    """The preset of ours that is nearest, or the published loss."""
    curve = diagnosis.facts.curve
    if diagnosis.facts.smoothing and diagnosis.facts.smoothing < 0:
        return "robust DPO (2403.00409)"
    if diagnosis.nearest:
        return f"{diagnosis.nearest}, with beta {four_digits(diagnosis.facts.beta)}"
    return KNOWN.get(curve.fit if curve else "", "none")


def in_short(diagnosis: Diagnosis) -> str:
    """One sentence."""
    count = len(diagnosis.deviations)
    against = "what it is meant to be" if diagnosis.target.claim else "its settings and the nearest preset"
    if count == 0:
        return f"No deviation from {against}."
    return f"{count} deviation{'s' if count > 1 else ''} from {against}: {', '.join(diagnosis.names)}."


def _text(diagnosis: Diagnosis) -> str:
    lines = [f"What this loss really is: {diagnosis.target.name}", "", in_short(diagnosis), ""]
    lines += [f"    {line}" for line in formula(diagnosis.facts)]
    lines += ["", f"nearest preset: {nearest(diagnosis)}", ""]
    width = max(len(name) for name, _ in rows(diagnosis))
    lines += [f"  {name:<{width}}  {answer}" for name, answer in rows(diagnosis) if answer != UNKNOWN]
    for each in diagnosis.deviations:
        lines += ["", f"{each.name.upper()}: {each.what}", *(f"    {line}" for line in each.example.splitlines())]
    return "\n".join([*lines, "", f"{UNKNOWN}: {'; '.join(unseen(diagnosis)) or 'nothing'}"])


def _markdown(diagnosis: Diagnosis) -> str:
    known = [row for row in rows(diagnosis) if row[1] != UNKNOWN]
    lines = [f"## What this loss really is: `{diagnosis.target.name}`", "", in_short(diagnosis), ""]
    lines += [*(f"    {line}" for line in formula(diagnosis.facts)), "", f"Nearest preset: {nearest(diagnosis)}.", ""]
    lines += [markdown_table([("question", "answer"), *known])]
    for each in diagnosis.deviations:
        lines += ["", f"**{each.name}.** {each.what}", "", *(f"    {line}" for line in each.example.splitlines())]
    return "\n".join([*lines, "", f"Not determined: {'; '.join(unseen(diagnosis)) or 'nothing'}."])


def _html(diagnosis: Diagnosis) -> str:
    def block(lines: list[str]) -> str:
        return f"<pre>{plain_html(chr(10).join(lines))}</pre>"

    known = [row for row in rows(diagnosis) if row[1] != UNKNOWN]
    cells = "\n".join(f"<tr><th>{plain_html(name)}</th><td>{plain_html(answer)}</td></tr>" for name, answer in known)
    title = f"What this loss really is: {escape(diagnosis.target.name)}"
    parts = [f"<h1>{title}</h1>", f"<p>{plain_html(in_short(diagnosis))}</p>", block(formula(diagnosis.facts))]
    parts += [f"<p>Nearest preset: {plain_html(nearest(diagnosis))}.</p>", f"<table>\n{cells}\n</table>"]
    for each in diagnosis.deviations:
        parts += [f"<h2>{plain_html(each.name)}</h2>", f"<p>{plain_html(each.what)}</p>"]
        parts += [block(each.example.splitlines())] if each.example else []
    parts += [f"<p>Not determined: {plain_html('; '.join(unseen(diagnosis)) or 'nothing')}.</p>"]
    body = "\n".join(parts)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
    return f"{head}\n<body>\n{body}\n</body></html>"
