"""No test fails because a machine is slow or busy: hypothesis has no deadline anywhere. Fixtures of several files."""

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def no_figure(monkeypatch) -> None:
    """The workflow draws none: drawing takes longer than all the rest."""
    from tests.workflow_toy import draw_no_figure  # here, for tests of the exact part need no language models

    draw_no_figure(monkeypatch)


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> str:
    """The folder of the toy model with its tokenizer."""
    from tests.toy import save_toy

    return save_toy(tmp_path_factory.mktemp("sft"))
