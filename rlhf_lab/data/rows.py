"""One row becomes one record, and all that is wrong with it is reported: column, kind and an example."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lab.data.contents import UNREAD, Content, checked_content, split_prompt
from rlhf_lab.data.problems import shorten

Row = Mapping[str, Any]
Report = Callable[[str, str, str], None]  # (column, kind, example) of one finding
# Responses that begin with a prompt of fewer words may do so by chance.
REPEATED_WORDS = 3


@dataclass(frozen=True)
class PreferenceRecord:
    """(x, y+, y-): `chosen` is preferred to `rejected` as a response to `prompt`; all text, or all message lists.

    Scores are rewards of the two responses, chosen >= rejected. `calibration` is a third response, drawn from the
    policy that calibrates VPO (`Objective.calibration="given"`). `row` is the position in the source, from 0.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    chosen_score: float | None = None
    rejected_score: float | None = None
    calibration: Content | None = None
    row: int = 0

    @property
    def responses(self) -> dict[str, Content]:
        """{column: response} in the order of `Example.responses`: chosen, rejected, calibration if there is one."""
        pair = {"chosen": self.chosen, "rejected": self.rejected}
        return pair if self.calibration is None else {**pair, "calibration": self.calibration}


@dataclass(frozen=True)
class SFTRecord:
    """(x, y): a response to imitate; text, or message lists. `row` is the position in the source, from 0."""

    prompt: Content
    response: Content
    row: int = 0

    @property
    def responses(self) -> dict[str, Content]:
        """{"response": response}, the counterpart of `PreferenceRecord.responses`."""
        return {"response": self.response}


def preference_record(number: int, row: Row, report: Report, *, explicit: bool) -> PreferenceRecord | None:
    """The record of row `number`, whatever is wrong with it given to `report`; None if no record can be made.

    explicit: prompts have a column of their own; otherwise the prompt is what chosen and rejected share at the start.
    """
    if not isinstance(row, Mapping):
        return report("row", "not a table row", shorten(row))
    _refuse_unread(row, report)
    names = ["prompt"] if explicit else []
    names += ["calibration"] if row.get("calibration") is not None else []
    contents = _contents(row, [*names, "chosen", "rejected"], report)
    scores = _scores(row, report)
    if contents is None:
        return None
    if "prompt" not in contents:
        contents = _with_implicit_prompt(contents, report)
    if contents["chosen"] == contents["rejected"]:
        report("rejected", "equal to chosen", shorten(contents["chosen"]))
    record = PreferenceRecord(**contents, **scores, row=number)
    _check_responses(record, report)
    return record


def sft_record(number: int, row: Row, report: Report) -> SFTRecord | None:
    """As `preference_record`: (prompt, response), or the last of `messages` as the response to those before."""
    if not isinstance(row, Mapping):
        return report("row", "not a table row", shorten(row))
    _refuse_unread(row, report)
    given = [name for name in ("response", "completion", "messages") if row.get(name) is not None]
    if len(given) > 1:
        return report(given[1], "ambiguous", f"the row has {' and '.join(given)}; keep one")
    name = given[0] if given else "response"
    contents = _contents(row, ["messages"] if name == "messages" else ["prompt", name], report)
    if contents is None:
        return None
    if name == "messages":
        if isinstance(contents["messages"], str) or len(contents["messages"]) < 2:
            return report("messages", "no conversation", f"needs a list of 2 or more: {shorten(row['messages'])}")
        contents = {"prompt": contents["messages"][:-1], name: contents["messages"][-1:]}
    record = SFTRecord(contents["prompt"], contents[name], number)
    _check_responses(record, report)
    return record


def _contents(row: Row, names: list[str], report: Report) -> dict[str, Content] | None:
    """The named columns, all text or all messages; None after reporting what is wrong."""
    checked = {name: checked_content(row.get(name)) for name in names}
    for name, (_, kind) in checked.items():
        if kind:
            report(name, kind, shorten(row.get(name)))
    if any(kind for _, kind in checked.values()):
        return None
    formats = {name: "text" if isinstance(content, str) else "messages" for name, (content, _) in checked.items()}
    if len(set(formats.values())) > 1:
        hint = "; --columns prompt=none takes the prompt from the messages" if formats.get("prompt") == "text" else ""
        report(names[-1], "mixed formats", ", ".join(f"{name} is {kind}" for name, kind in formats.items()) + hint)
        return None
    return {name: content for name, (content, _) in checked.items()}


def _with_implicit_prompt(contents: dict[str, Content], report: Report) -> dict[str, Content]:
    prompt, chosen, rejected = split_prompt(contents["chosen"], contents["rejected"])
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        report("prompt", "missing", "no prompt column, and chosen and rejected have no common beginning")
    split = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if (calibration := contents.get("calibration")) is not None:
        if calibration[: len(prompt)] != prompt:
            report("calibration", "does not begin with the prompt", shorten(calibration))
        split["calibration"] = calibration[len(prompt) :]
    return split


def _refuse_unread(row: Row, report: Report) -> None:
    for name in UNREAD:
        if row.get(name):
            report(name, "unsupported column", f"a template would show the model {shorten(row[name])}")


def _check_responses(record: PreferenceRecord | SFTRecord, report: Report) -> None:
    _check_prompt(record, report)
    for name, response in record.responses.items():
        if not response or (isinstance(response, str) and not response.strip()):
            report(name, "empty", "nothing is left after the prompt")
        elif not isinstance(response, str) and {response[0]["role"], response[-1]["role"]} != {"assistant"}:
            report(name, "wrong role", f"a response begins and ends with an assistant message: {shorten(response)}")
        elif not isinstance(response, str) and any(message["role"] != "assistant" for message in response):
            report(name, "turns of others", f"they would be trained on too: {shorten(response)}")


def _check_prompt(record: PreferenceRecord | SFTRecord, report: Report) -> None:
    """A prompt ends before the assistant speaks, and responses do not say it again."""
    prompt = record.prompt
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] == "assistant":
        report("prompt", "ends with an assistant", "move the beginning of the answer into the responses")
    telling = not isinstance(prompt, str) or len(prompt.split()) >= REPEATED_WORDS
    if not prompt or not telling:
        return
    repeating = [name for name, response in record.responses.items() if response[: len(prompt)] == prompt]
    if len(repeating) == len(record.responses):
        report(repeating[0], "repeats the prompt", "--columns prompt=none takes it from the responses")
    elif repeating:
        others = ", ".join(name for name in record.responses if name not in repeating)
        report(repeating[0], "repeats the prompt", f"and {others} does not: cut the prompt off, or drop the row")


def _scores(row: Row, report: Report) -> dict[str, float | None]:
    scores = {name: row.get(name) for name in ("chosen_score", "rejected_score")}
    given = {name: value for name, value in scores.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            report(name, "wrong type", shorten(value))
        elif not math.isfinite(number := _as_float(value)):
            report(name, "not finite", shorten(value))
        else:
            scores[name] = number
    if len(given) == 1:
        report(next(name for name in scores if name not in given), "missing", "only one of the two scores is given")
    elif (
        given
        and all(isinstance(s, float) for s in scores.values())
        and scores["chosen_score"] < scores["rejected_score"]
    ):
        report("chosen_score", "below rejected_score", f"{scores['chosen_score']} < {scores['rejected_score']}")
    return scores


def _as_float(value: int | float) -> float:
    """Infinity for an integer of more than 308 digits."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
