"""Where the shipped models and notebooks are looked for, and what is said when they are missing."""

import pytest

from rlhf_lab.common import assets


def make_model(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text("{}")
    return folder / name


def test_the_variable_points_to_another_folder_and_only_there(tmp_path, monkeypatch):
    mine = make_model(tmp_path, "small")
    monkeypatch.setenv(assets.SMALL_MODELS_VARIABLE, str(tmp_path))
    assert assets.small_model_path("small") == mine
    with pytest.raises(FileNotFoundError, match=r"no small model 'huge'.*found there: small.*unset it"):
        assets.small_model_path("huge")


def test_a_wheel_is_searched_before_the_folder_above_it(tmp_path, monkeypatch):
    """site-packages/rlhf_lab/_assets wins over site-packages/small_models, which is somebody else's."""
    package = tmp_path / "site-packages" / "rlhf_lab"
    monkeypatch.delenv(assets.SMALL_MODELS_VARIABLE, raising=False)
    monkeypatch.setattr(assets, "PACKAGE", package)
    with pytest.raises(FileNotFoundError, match=r"found there: none\. The shipped models"):
        assets.small_model_path("tiny")
    with pytest.raises(FileNotFoundError, match="no notebooks in"):
        assets.notebooks_path()
    above = make_model(package.parent / "small_models", "tiny")
    assert assets.small_model_path("tiny") == above
    inside = make_model(package / "_assets" / "small_models", "tiny")
    assert assets.small_model_path("tiny") == inside
    (package / "_assets" / "notebooks").mkdir()
    (package / "_assets" / "notebooks" / "01_a.ipynb").write_text("{}")
    assert assets.notebooks_path() == package / "_assets" / "notebooks"


def test_a_folder_without_config_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    monkeypatch.setenv(assets.SMALL_MODELS_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        assets.small_model_path("small")


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_shipped_models_are_complete_and_each_file_is_under_12_mb(name, monkeypatch):
    monkeypatch.delenv(assets.SMALL_MODELS_VARIABLE, raising=False)
    files = {path.name: path.stat().st_size for path in assets.small_model_path(name).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert max(files.values()) < 12_000_000, files


def test_the_notebooks_are_found_in_the_checkout():
    assert (assets.notebooks_path() / "source").is_dir()
