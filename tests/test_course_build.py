"""The build of notebooks, and its negative controls: what must not be published is caught by name."""

import io
import json
import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from rlhf_lab.authoring import benchmarks
from rlhf_lab.authoring import build as build_module
from rlhf_lab.authoring import readme as results
from rlhf_lab.authoring.build import build_notebooks, main
from rlhf_lab.authoring.execute import execute
from rlhf_lab.authoring.masters import CourseError, between_markers, minutes, read_master, readme_table
from rlhf_lab.authoring.publish import MAX_BYTES, WIDGET_VIEW, clean, differences, notebook_json, problems
from rlhf_lab.common import plots
from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.course import figures, tables
from rlhf_lab.course.predict import Prediction
from rlhf_lab.objective import PRESETS
from rlhf_lab.studies.report import STUDIES

README = "# A course\n<!-- notebooks:begin -->\n<!-- notebooks:end -->\nThe end.\n"
HEADER = """\
# ---
# jupyter:
#   rlhf_lab:
#     title: Does it build?
#     shows: a build
#     needs: nothing
#     time_budget_s: {budget}
#     objectives: [build one, check it]
# ---
"""


def make_course(root: Path, body: str, budget: float = 600, name: str = "01_small") -> Path:
    source = root / "notebooks" / "source"
    source.mkdir(parents=True, exist_ok=True)
    (source / f"{name}.py").write_text(HEADER.format(budget=budget) + "\n" + textwrap.dedent(body), encoding="utf-8")
    if not (root / "README.md").exists():
        (root / "README.md").write_text(README, encoding="utf-8")
    return source / f"{name}.py"


def run_cell(source: str, budget: float = 600):
    return execute(new_notebook(cells=[new_code_cell(textwrap.dedent(source))]), time_budget_s=budget)


def test_build_then_check_agree_and_every_kind_of_staleness_is_caught(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # nothing may depend on where the command is run
    make_course(
        tmp_path,
        """\
        # %% [markdown]
        # Some prose.

        # %% tags=["exercise"]
        from pathlib import Path
        import time
        print("took", time.time(), "s in", len(list(Path().iterdir())), "files")

        # %% tags=["solution"]
        import matplotlib.pyplot as plt
        from rlhf_lab.common.plots import style
        from rlhf_lab.course.figures import show
        with style():
            fig, ax = plt.subplots()
            ax.plot([1, 2])
        show(fig, alt="A line from 1 to 2.")

        # %%
        import ipywidgets as widgets
        widgets.interact(lambda beta: print(beta), beta=(0, 1.0));
        """,
    )
    assert list(build_notebooks(tmp_path, check=True)) != []  # nothing is published yet
    assert list(build_notebooks(tmp_path)) == []
    assert main(["--root", str(tmp_path), "--check"]) == 0  # though the printed time differs
    assert "01_small" in capsys.readouterr().out

    path = tmp_path / "notebooks" / "01_small.ipynb"
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    header = notebook.cells[0].source
    assert header.startswith("# Does it build?") and "1. build one\n2. check it" in header and "10 minutes" in header
    assert [cell.metadata.get("tags") for cell in notebook.cells[2:4]] == [["exercise"], ["solution"]]
    assert "widget" not in str(notebook.cells[-1].outputs) + str(notebook.metadata)
    assert "in 0 files" in notebook.cells[2].outputs[0].text and "execution" not in notebook.cells[2].metadata
    assert 'alt="A line from 1 to 2."' in notebook.cells[3].outputs[0].data["text/html"]

    path.write_text(text.replace("Some prose.", "Some other prose."), encoding="utf-8")
    assert any("stale" in problem and "source differs" in problem for problem in build_notebooks(tmp_path, check=True))
    notebook.cells[3].outputs.clear()
    path.write_text(notebook_json(notebook), encoding="utf-8")
    assert any("structure of outputs" in problem for problem in build_notebooks(tmp_path, check=True))
    path.write_text(text, encoding="utf-8")
    (tmp_path / "notebooks" / "02_orphan.ipynb").write_text(text, encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("Does it build?", "Did it build?"), encoding="utf-8")
    found = " ".join(build_notebooks(tmp_path, check=True))
    assert "02_orphan.ipynb has no master" in found and "README" in found and "stale" not in found


SWALLOWED = {
    "Output": "import ipywidgets\nwith ipywidgets.Output():\n    raise RuntimeError('lost')",
    "capture": """
        import ipywidgets
        @ipywidgets.Output().capture()
        def work():
            raise RuntimeError('lost')
        work()""",
    "interact": """
        import ipywidgets
        def work(beta):
            raise RuntimeError('lost')
        ipywidgets.interact(work, beta=1.0);""",
    "interactive_output, cleared by the next value": """
        import ipywidgets
        slider = ipywidgets.FloatSlider(value=1.0)
        def work(beta):
            if beta == 1.0:
                raise RuntimeError('lost')
        out = ipywidgets.interactive_output(work, {'beta': slider})
        slider.value = 2.0""",
    "put into the widget by hand": """
        import ipywidgets
        error = {'output_type': 'error', 'ename': 'RuntimeError', 'evalue': 'lost', 'traceback': []}
        ipywidgets.VBox([ipywidgets.Output(outputs=(error,))])""",
    "thread": """
        import threading
        def work():
            raise RuntimeError('lost')
        thread = threading.Thread(target=work)
        thread.start(), thread.join(); None""",
}


def test_swallowed_errors_are_caught():
    """One kernel per kind: without the guard each of these notebooks passes (its cell does not raise)."""
    for kind, source in SWALLOWED.items():
        run = run_cell(source)
        assert any("lost" in error for error in run.errors), kind
        assert all(output.output_type != "error" for output in run.notebook.cells[0].outputs), kind


def test_no_kernel_outlives_its_notebook():
    for source in ("import os\nprint(os.getpid())", "import os\nprint(os.getpid(), flush=True)\nraise KeyError"):
        outputs = run_cell(source).notebook.cells[0].outputs
        assert not psutil.pid_exists(int(outputs[0]["text"]))


def test_a_kernel_that_dies_is_an_error():
    assert any("the kernel died" in error for error in run_cell("import os; os._exit(1)").errors)


def test_a_raising_cell_stops_the_notebook_and_nothing_is_published(tmp_path, capsys):
    make_course(tmp_path, "# %%\n1 / 0\n")
    assert main(["--root", str(tmp_path), "01_small"]) == 1
    assert "01_small: cell 1: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not (tmp_path / "notebooks" / "01_small.ipynb").exists()


def test_over_budget_is_caught_while_running_and_afterwards(tmp_path):
    run = run_cell("import time; time.sleep(0.2)")
    assert list(run.cell_seconds) == [0] and 0.2 <= run.cell_seconds[0] <= run.seconds
    assert any("whole budget" in error for error in run_cell("import time; time.sleep(3600)", budget=1).errors)
    make_course(tmp_path, "# %%\nx = 1\n", budget=0.01)
    assert any("its time budget is" in problem for problem in build_notebooks(tmp_path))


def test_a_check_on_a_slow_machine_has_three_times_the_budget(tmp_path, monkeypatch):
    """1.5 budgets pass the check and are refused for publishing; 3.5 budgets fail both."""
    make_course(tmp_path, "# %%\nx = 1\n", budget=600)
    assert list(build_notebooks(tmp_path)) == []
    for seconds, check, passes in ((900, True, True), (900, False, False), (2100, True, False)):

        def execute_slowly(notebook, *, time_budget_s, seconds=seconds):
            return replace(execute(notebook, time_budget_s=600), seconds=seconds)

        monkeypatch.setattr(build_module, "execute", execute_slowly)
        assert (list(build_notebooks(tmp_path, check=check)) == []) is passes


def test_pictures_need_alt_text(tmp_path):
    make_course(tmp_path, "# %%\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);\n")
    found = list(build_notebooks(tmp_path))
    assert len(found) == 1 and "cell 1: a picture without alt text" in found[0]
    for bad in ("<p><img src='a.png'></p>", "<img alt=' ' src='a.png'>", "<svg><path/></svg>"):
        cell = new_code_cell(outputs=[new_output("display_data", {"text/html": bad})])
        assert len(problems(new_notebook(cells=[cell]))) == 1, bad
        assert len(problems(new_notebook(cells=[new_markdown_cell(bad)]))) == 1, bad
    assert problems(new_notebook(cells=[new_markdown_cell("![](a.png)")])) != []
    fine = "![a curve](a.png) <img alt='a curve' src='a.png'> <svg aria-label='a curve'></svg>"
    assert problems(new_notebook(cells=[new_markdown_cell(fine)])) == []


def test_size_errors_and_widget_metadata_are_problems():
    big = new_notebook(cells=[new_markdown_cell("x" * MAX_BYTES)])
    assert "300 KB" in problems(big)[0] and problems(new_notebook(cells=[new_markdown_cell("x" * 1000)])) == []
    error = new_output("error", ename="KeyError", evalue="'a'", traceback=[])
    assert problems(new_notebook(cells=[new_code_cell(outputs=[error])])) == ["cell 0: KeyError: 'a'"]
    assert "widgets" in problems(new_notebook(metadata={"widgets": {}}))[0]


def test_clean_drops_views_progress_and_timings_but_keeps_a_panels_picture():
    view = new_output("display_data", {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "interactive(children=..."})
    panel = new_output(
        "display_data",
        {WIDGET_VIEW: {"model_id": "2"}, "image/png": "iVBOR\n", "text/plain": "VBox"},
        metadata={"image/png": {"alt": 'a "panel"'}},
    )
    streams = [new_output("stream", name=n, text=t) for n, t in [("stdout", "0%\r50%\rdone\n"), ("stderr", "50%")]]
    outputs = [view, panel, *streams, new_output("stream", name="stdout", text="more\n")]
    cell = new_code_cell(outputs=outputs, metadata={"execution": {"iopub.status.idle": "now"}})
    cleaned = clean(new_notebook(cells=[cell])).cells[0]
    assert "execution" not in cleaned.metadata
    assert [output.output_type for output in cleaned.outputs] == ["display_data", "stream"]
    assert '<img alt="a &quot;panel&quot;" src="data:image/png;base64,iVBOR"' in cleaned.outputs[0].data["text/html"]
    assert cleaned.outputs[1].text == "done\nmore\n"
    assert problems(new_notebook(cells=[cleaned])) == []


def test_differences_ignore_numbers_but_not_structure():
    def notebook(text: str, name: str = "stdout"):
        return new_notebook(cells=[new_code_cell("f()", id="a", outputs=[new_output("stream", name=name, text=text)])])

    assert differences(notebook("took 1.0 s"), notebook("took 2.0 s")) == []
    assert "structure" in differences(notebook("1"), notebook("1", name="stderr"))[0]
    assert "cells" in differences(new_notebook(), notebook("1"))[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Does it build?", "title: It builds", "question"),
        ("time_budget_s: 600", "time_budget_s: soon", "number of seconds"),
        ("shows: a build", "shows: 3", "a line of text"),
        ("needs: nothing", "wants: nothing", "must be title"),
        ("objectives: [build one, check it]", "objectives: none", "list of sentences"),
        ("# %%", '# %% tags=["exersise"]', "unknown cell tag"),
        ("# %%", '# %% tags=["solution"]', "does not follow its exercise"),
    ],
)
def test_masters_are_checked(tmp_path, old, new, message):
    path = make_course(tmp_path, "# %%\nx = 1\n")
    path.write_text(path.read_text().replace(old, new), encoding="utf-8")
    with pytest.raises(CourseError, match=message.replace("|", r"\|")):
        read_master(path)


def test_readme_table_and_unknown_names(tmp_path):
    master = read_master(make_course(tmp_path, "# %%\nx = 1\n", budget=90))
    table = readme_table([master])
    assert "| [01_small](notebooks/01_small.ipynb) | Does it build? | 2 minutes |" in table
    assert "| a \\| b |" in readme_table([replace(master, title="a | b")])
    text = between_markers(README, table)
    assert between_markers(text, table) == text and text.endswith("The end.\n")
    assert [minutes(s) for s in (30, 60, 240)] == ["30 seconds", "1 minute", "4 minutes"]
    with pytest.raises(CourseError, match="notebooks:begin"):
        between_markers("no markers", table)
    with pytest.raises(CourseError, match="no master named 07_no"):
        list(build_notebooks(tmp_path, ["07_no"]))
    with pytest.raises(CourseError, match="no masters"):
        list(build_notebooks(tmp_path / "elsewhere"))


def test_result_tables_go_between_their_markers(tmp_path):
    """A benchmark row of 8 and 2 pairs/s, ratio 4, 85% of the limit, 1.25 GB of ours, no memory of TRL's measured."""
    readme, measured = tmp_path / "README.md", tmp_path / "rows.json"
    readme.write_text("a\n<!-- preference_step:begin -->\nold\n<!-- preference_step:end -->\nz\n", encoding="utf-8")
    row = {"shape": "tldr", "model": "6M", "precision": "bf16", "ours_pairs_per_s": 8, "trl_pairs_per_s": 2}
    row |= {"prompt": 400, "pairs": 32, "ours_memory_gb": 1.25}
    measured.write_text(json.dumps([row | {"speed_ratio": 4, "limit_share": 0.85}]), encoding="utf-8")
    assert results.main(["preference_step", str(measured), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "| tldr | 6M | bf16 | 400 | 32 | 8.00 | 2.00 | 4.00x | 1.2 |  |  | 85% |" in text and "old" not in text
    assert text.startswith("a\n") and text.endswith("z\n")


def test_the_studies_table_has_each_shipped_study_in_the_commands_order(tmp_path):
    """What ships in docs/studies is in its README, with the answer that its own numbers make."""
    readme, shipped = tmp_path / "README.md", PACKAGE.parent / "docs" / "studies"
    readme.write_text("<!-- studies:begin -->\n<!-- studies:end -->\n", encoding="utf-8")
    files = sorted(map(str, shipped.glob("*/results.json")))
    assert results.main(["studies", *files, "--readme", str(readme)]) == 0
    table = readme.read_text(encoding="utf-8")
    assert table in (shipped / "README.md").read_text(encoding="utf-8")
    assert [line.split("]")[0][3:] for line in table.splitlines() if line.startswith("| [")] == list(STUDIES)
    with pytest.raises(SystemExit):
        results.main(["bandits", *files, "--readme", str(readme)])


def test_the_benchmarks_page_has_the_tables_of_its_files(tmp_path):
    """Every script of tests/benchmarks has its table and its command, and what was measured is what the table shows."""
    root = PACKAGE.parent
    scripts = {path.stem for path in (root / "tests" / "benchmarks").glob("[!_]*.py")}
    assert scripts == set(results.TABLES) - {"summarize", "validation", "online", "studies"}
    published = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    page = tmp_path / "benchmarks.md"
    page.write_text(published, encoding="utf-8")
    for name in sorted(scripts):
        assert f"python -m tests.benchmarks.{name} " in published and f"docs/benchmarks/{name}.json" in published
        file = root / "docs" / "benchmarks" / f"{name}.json"
        empty = f"<!-- {name}:begin -->\nNot measured yet.\n<!-- {name}:end -->"
        assert file.is_file() != (empty in published), f"{name}: measured, or said not to be"
        if file.is_file():
            assert results.main([name, str(file), "--readme", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == published
    assert scripts >= {path.stem for path in (root / "docs" / "benchmarks").iterdir()}


def test_benchmark_tables_say_what_was_measured():
    """2,000 tokens/s, 4 times as many as the others; 3 s for 6,000 refits are 500 us each."""
    rows = [{"method": "ours bf16", "tokens_per_s": 2000.4, "ours_is_faster_by": 1.0}]
    rows.append({"method": "generate bf16", "tokens_per_s": 500.0, "ours_is_faster_by": 4.0})
    table = benchmarks.generation_table({"rows": rows})
    assert "| ours | bf16 | 2,000 | 1.0x |" in table and "| generate | bf16 | 500 | 4.0x |" in table
    worlds = {"name": "worlds", "cpu_seconds": 3.0, "refits": 6000, "us_per_refit": 500.0}
    told = benchmarks.bandits_table({"rows": [worlds], "ratio": 20.4, "peak_mb": 99.6, "threads": 1})
    assert "| worlds | 6,000 | 3.00 | 500 |" in told and "20 times faster" in told and "100 MB" in told
    fit = {"beta": 0.1, "comparisons": 20, "alpha": 3.0, "ours_ms": 5.0, "plain_ms": 1500.0, "ratio": 300.0}
    table = benchmarks.offline_fit_table([fit | {"newton_steps": 7, "same": 2e-5}])
    assert "| 0.1 | 20 | 3 | 5.0 | 1,500 | 300x | 7 | 2e-05 |" in table
    facts = {"date": "2026-12-01", "cores": 2, "python": "3.11.7", "torch": "2.13.0", "rounds": 3}
    settings = {"one thread": {"alone": 60.4, "shared": 90.6, "slowdown": 1.5}}
    table = benchmarks.shared_machine_table(facts | {"settings": settings})
    assert "| one thread | 60 | 91 | 1.50x |" in table and "2026-12-01; torch 2.13.0" in table


def test_prediction_never_blocks_and_reveals_only_an_option(capsys):
    prediction = Prediction("Which way?", ["up", "down"])
    assert prediction.choice is None
    assert "<li>up</li>" in prediction._repr_mimebundle_()["text/html"]
    assert WIDGET_VIEW in prediction._repr_mimebundle_()
    prediction.reveal("up")
    prediction.buttons.value = "down"
    assert prediction.choice == "down"
    with pytest.raises(ValueError, match="none of the options"):
        prediction.reveal("sideways")
    with pytest.raises(ValueError, match="two or more"):
        Prediction("Which way?", ["up", "up"])


def test_every_method_has_its_own_colour_and_label():
    assert set(PRESETS) | {"sft", "reference", "ipo"} <= set(plots.METHOD_COLOURS)
    assert len({colour.lower() for colour in plots.METHOD_COLOURS.values()}) == len(plots.METHOD_COLOURS)
    assert set(plots.METHOD_LABELS) == set(plots.METHOD_COLOURS)
    with pytest.raises(ValueError, match="no colour"):
        plots.method_colour("dop")


def test_pictures_are_the_same_bytes_every_time_small_and_closed():
    def draw():
        with plots.style():
            fig, ax = plt.subplots()
            for row, method in enumerate(("dpo", "wpo", "sft")):
                ax.plot([0, 1], [0, row * 0.01], color=plots.method_colour(method), label=method)
            plots.label_ends(ax)
        return fig

    figure = draw()
    assert plots.png_bytes(figure) == plots.png_bytes(draw()) and len(plots.png_bytes(figure)) < 20_000
    assert 'alt="DPO &amp; WPO, &lt;3 lines&gt;"' in plots.html_image(figure, "DPO & WPO, <3 lines>")
    with pytest.raises(ValueError, match="say in a sentence"):
        plots.html_image(figure, "figure")
    figures.show(figure, alt="three lines that rise")
    assert figure.number not in plt.get_fignums()
    assert plt.rcParams["axes.spines.top"]  # the style stays inside its `with`
    plt.close("all")


def test_small_pictures_keep_the_methods_colours():
    """A thin line of each method on white: some pixel is within 8/255 of its colour in every channel."""
    with plots.style():
        fig, ax = plt.subplots()
        for row, method in enumerate(plots.METHOD_COLOURS):
            ax.plot([0, 1], [row, row], color=plots.method_colour(method), label=method)
    pixels = np.asarray(Image.open(io.BytesIO(plots.png_bytes(fig))).convert("RGB")).astype(int).reshape(-1, 3)
    for method, colour in plots.METHOD_COLOURS.items():
        wanted = [round(255 * part) for part in matplotlib.colors.to_rgb(colour)]
        assert np.abs(pixels - wanted).max(1).min() <= 8, method
    plt.close("all")


def test_html_tables_escape_and_refuse_ragged_rows():
    table = tables.html_table(["a", "b"], [(0.12345, "<eos> | *x*"), (3, "")], "a & b")
    assert "<span>$</span>5" in tables.html_table(["a"], [("$5 or $6",)])  # no formula where MathJax runs
    assert "0.123</td>" in table and "&lt;eos&gt; | *x*" in table and ">3</td>" in table and "a &amp; b" in table
    with pytest.raises(ValueError, match="2 columns, but a row has 1"):
        tables.html_table(["a", "b"], [(1,)])


def test_interval_bars_put_the_first_name_on_top_and_the_interval_where_it_is():
    _, ax = plt.subplots()
    plots.interval_bars(ax, ["sft", "dpo"], [0.1, 0.2], [0.05, 0.15], [0.15, 0.3])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["SFT", "DPO"]
    assert ax.get_ylim() == (1.5, -0.5)
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[0.05, 0.15], [0.15, 0.3]]
    assert [bar.get_width() for bar in ax.patches] == [0.1, 0.2]
    plt.close("all")


def test_published_notebooks_are_json_without_widget_state():
    """The shipped notebooks themselves: cheap checks here, the full rebuild is `build --check` in CI."""
    for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
        assert problems(nbformat.read(path, as_version=4)) == [], path.name
        assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
