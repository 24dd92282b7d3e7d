"""The house style and the judges made of it: every rule by hand, scripts other than Latin, judges of one's own."""

import json

import numpy as np
import pytest

from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.judges.gold import content_judge, house_judge, house_score, style_judge
from rlhf_lab.judges.own import each_response, function_of
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.judges.style import (
    StyleParts,
    document_of,
    found_share,
    imperative_verbs,
    is_sentence,
    style_parts,
    third_person,
)
from rlhf_lab.workflow.prompts import Row
from rlhf_lab.workflow.run import NamedJudge
from rlhf_lab.workflow.scores import gold_judge, gold_scores, named_judge, scores

VERBS = frozenset({"return", "open"})
DOCUMENT = "The mapping of names to open files, which the caller closes."


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("Return the mapping of names.", (1, 1, 1, 1)),  # mapping and names are in the document; "the", "of" are short
        ("return the mapping of names.", (1, 0, 1, 1)),  # D403: begins in lower case
        ("Return the mapping of names", (1, 0, 1, 1)),  # D400: no period
        ("Returns the mapping of names.", (0, 1, 1, 2 / 3)),  # D401; "returns" counts as a content word then
        ("Return names.", (1, 1, 0, 1)),  # two words
        ("Return the mapping of names to files that somebody else has opened.", (1, 1, 0, 4 / 7)),
        ("Return sockets of all servers.", (1, 1, 1, 0)),
        ("Return it. Open the files.", (1, 0, 1, 1 / 1)),
        ("", (0, 0, 0, 0)),
        ("...", (0, 1, 0, 0)),
    ],
)
def test_every_rule_by_hand(summary, expected):
    assert style_parts(DOCUMENT, summary, VERBS) == pytest.approx(expected)
    assert StyleParts(*expected).score == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Return e.g. a list.", True),
        ("Return version 2.0 of it.", True),
        ("Return it! Open that.", False),
        ("返回文件。", True),
        ("返回文件。打开。", False),
        ("Возвращает файл.", True),
        ("возвращает файл.", False),
        ("Возвращает файл, т. е. строку.", True),  # an abbreviation: lower case goes on behind it, as in "e.g. a"
        ("Возвращает файл. Открывает его.", False),
        ("返回文件！打开。", False),
        ("फ़ाइल लौटाएँ।", True),
        ("Return it?", False),
        ("  Return it.  ", True),
    ],
)
def test_a_sentence_ends_with_a_period_of_any_script(text, is_one):
    assert is_sentence(text) is is_one


def test_words_of_other_scripts_are_content_however_short():
    assert found_share("открыть файл", ["файл", "да"]) == 0.5
    assert found_share("数据", ["数", "据", "文"]) == pytest.approx(2 / 3)
    assert found_share("cafe\u0301s open", ["cafés"]) == 1.0  # composed and decomposed accents are one word


def test_commands_are_words_whose_third_person_opens_summaries_too():
    summaries = [
        "Return the list.",
        "Returns a list.",
        "Names of all files.",
        "Name of a file.",
        "Copy a file.",
        "Copies it.",
    ]
    assert imperative_verbs(summaries) == {"return", "copy"}  # "name" is never followed by an article
    assert imperative_verbs(["Return the list.", "Open a file."]) == frozenset()
    forms = {"return": "returns", "match": "matches", "copy": "copies", "play": "plays", "pass": "passes", "do": "does"}
    assert {verb: third_person(verb) for verb in forms} == forms


def test_the_house_judge_is_the_weighted_mean_of_content_and_style():
    prompt, texts, reference = f"{DOCUMENT} <tldr>", ["Return the mapping of names.", "files"], "Map names to files."
    content = content_judge()([prompt], [texts], [reference])[0]
    style = style_judge(VERBS)([prompt], [texts])[0]
    assert content == [rouge_l(text, reference) for text in texts]
    assert style == [style_parts(DOCUMENT, text, VERBS).score for text in texts]
    for weight in (0.0, 0.25, 0.5, 1.0):
        house = house_judge(VERBS, weight)([prompt], [texts], [reference])[0]
        assert house == pytest.approx([house_score(c, s, weight) for c, s in zip(content, style, strict=True)])
    assert house == style
    with pytest.raises(ValueError, match="house judge needs one human text per prompt"):
        house_judge(VERBS)([prompt], [texts])
    with pytest.raises(ValueError, match=r"style_weight=1\.5"):
        house_judge(VERBS, 1.5)


def test_documents_are_prompts_without_their_end():
    assert document_of("Opens a file. <tldr>") == "Opens a file."
    messages = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Opens a file."})
    assert document_of(messages) == "Be short.\nOpens a file."


def test_another_corpus_is_another_judge():
    """Its verbs decide what a command is: stages of one must not be taken for those of the other."""
    corpora = [
        [DocstringPair("d", s, "train", "p", "n") for s in (f"{v} it a.", f"{v} the b.", f"{v}s a c.")]
        for v in ("get", "set")
    ]
    first, second = (gold_judge("house", corpus) for corpus in corpora)
    assert (first.verbs, second.verbs) == ({"get"}, {"set"})
    assert first.identity != second.identity != gold_judge("style", corpora[1]).identity
    with pytest.raises(ValueError, match="no summary of the corpus opens with a command"):
        gold_judge("style", corpora[0][:1])


MODULE = """
def short(prompt, response, reference):
    return -len(response.split())

def broken(prompt, response, reference):
    return 1 / 0

def few(prompt, response):
    return 0.0

def none(prompt, response, reference):
    pass

def huge(prompt, response, reference):
    return 10**400

def leaves(prompt, response, reference):
    raise SystemExit(0)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_judges", raising=False)
    return tmp_path


def test_a_function_of_ones_own_judges(module):
    judge = named_judge("my_judges:short")
    assert judge.load()(["p"], [["one two", "one"]], None) == [[-2.0, -1.0]]
    assert not judge.relative and judge.verbs is None
    assert judge.identity == f"function my_judges:short {function_of('my_judges:short')[1]}"


def test_an_edited_judge_is_another_judge(module):
    """Edited between two runs of one process: neither the old function nor the old stages may be taken."""
    first = named_judge("my_judges:short")
    (module / "my_judges.py").write_text("def short(prompt, response, reference):\n    return 7  # always\n")
    second = named_judge("my_judges:short")
    assert second.load()(["p"], [["one two"]], None) == [[7.0]]
    assert second.identity != first.identity


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("my_judges:tall", "no function 'tall'; it has broken, few, huge, leaves, none, short"),
        ("no_such_module:short", "importing no_such_module fails"),
        ("my_judges:broken", "fails at response 'text': ZeroDivisionError"),
        ("my_judges:none", "gave None for response 'text'"),
        ("my_judges:few", "my_judges:few': few must take"),
        ("math:hypot", "hypot must take .*no signature found"),
        ("my_judges:huge", "gave 10+ for response"),
        ("my_judges:leaves", "fails at response 'text': SystemExit"),
        ("quits:short", "importing quits fails: SystemExit"),
        ("random:short", "random.py has the name of a module that Python itself or a package needs"),
        ("pyarrow:short", "pyarrow.py has the name of a module"),
        ("gold", "what was gold is content now"),
        ("nowhere", "no folder with a reward or pairwise preference model"),
    ],
)
def test_what_is_no_judge_is_refused_by_name(module, name, match):
    for file, text in (("quits", "import sys\nsys.exit(0)"), ("random", MODULE), ("pyarrow", MODULE)):
        (module / f"{file}.py").write_text(text)
    with pytest.raises(ValueError, match=match):
        named_judge(name).load()(["p"], [["text"]], None)


def test_numbers_of_a_judge_must_be_finite():
    for value in (float("nan"), float("inf"), "1", None):
        with pytest.raises(ValueError, match="must be a finite number"):
            each_response(lambda p, r, ref, value=value: value)(["p"], [["text"]], ["ref"])


def test_numbers_of_numpy_are_numbers():
    for value in (np.float32(1), np.int64(1), np.bool_(True), True):
        assert each_response(lambda p, r, ref, value=value: value)(["p"], [["text"]], ["ref"]) == [[1.0]]


def test_a_judge_cannot_write_into_the_messages_of_a_prompt():
    def careless(prompt, response, reference):
        prompt[0]["content"] = response
        return 0.0

    messages = ({"role": "user", "content": "Opens a file."},)
    assert each_response(careless)([messages], [["text"]], None) == [[0.0]]
    assert messages[0]["content"] == "Opens a file."


def test_a_judge_of_lists_may_sort_them_and_must_return_numbers():
    texts = [["b", "a"]]

    def sorts(prompts, responses, references):
        responses[0].sort()
        return [[0.0, 1.0]]

    assert scores(NamedJudge("sorts", lambda: sorts), ["p"], texts, None) == [[0.0, 1.0]]
    assert texts == [["b", "a"]]
    for wrong in (None, [None], [["x", "y"]], [[None, 1.0]]):
        judge = NamedJudge("wrong", lambda wrong=wrong: lambda *asked: wrong)
        with pytest.raises(ValueError, match=r"\(wrong\) did not return a list of numbers for each prompt"):
            scores(judge, ["p"], texts, None)


def test_an_installed_module_is_not_run_again():
    """importlib.reload(json) would give everybody else's json new classes."""
    before = json.JSONDecodeError, json.decoder.JSONDecoder
    assert function_of("json.decoder:JSONDecoder")[0] is before[1]
    assert (json.JSONDecodeError, json.decoder.JSONDecoder) == before


def test_style_is_gold_without_a_reference_and_house_is_not():
    corpus = [DocstringPair("d", text, "train", "p", text) for text in ("Get it.", "Get the name.", "Gets a name.")]
    asked = [Row(prompt="The name. <tldr>", ids=[4], reference=None)]
    style, house = (gold_judge(name, corpus) for name in ("style", "house"))
    assert gold_scores(style, asked, [["Get the name of it."]]) == [[1.0]]
    assert gold_scores(house, asked, [["Get the name of it."]]) == [[None]]
