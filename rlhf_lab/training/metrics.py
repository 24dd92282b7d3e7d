"""Running means that stay on the device until they are logged, and the places they are logged to."""

import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.common.errors import cause
from rlhf_lab.training.settings import TrainingSettings

METRICS_FILE = "metrics.jsonl"
IN_THE_BAR = ("loss", "rewards/accuracies", "eval_loss")

Report = Callable[[dict[str, float], int], None]


def accuracies(margins: Tensor) -> Tensor:
    """1 where chosen wins, 0 where it loses, 1/2 where both are equal: a policy that is its reference reads .5."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


class Averages:
    """Weighted means sum(w v) / sum(w) of per-example values, kept on the device until they are read.

    sums: where an earlier run stopped (`state`), to go on from there.
    """

    def __init__(self, sums: dict[str, float] | None = None, device: torch.device | str = "cpu") -> None:
        self.sums = {name: torch.tensor(v, dtype=_precise(device), device=device) for name, v in (sums or {}).items()}

    def add(self, loss: Tensor, weights: Tensor, metrics: dict[str, Tensor]) -> None:
        """loss: [B], sums over each example. weights: [B]. metrics: [B] each, means within each example."""
        dtype = _precise(weights.device)
        weights = weights.detach().to(dtype)
        new = {"weight": weights.sum(), "loss": loss.detach().to(dtype).sum()}
        new |= {name: (value.detach().to(dtype) * weights).sum() for name, value in metrics.items()}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in new.items()}

    def read_and_clear(self) -> dict[str, float]:
        """The means since the last call, in one transfer from the device."""
        weight, *sums = torch.stack(list(self.sums.values())).tolist()
        names = list(self.sums)[1:]
        self.sums = {}
        return {name: value / weight for name, value in zip(names, sums, strict=True)}

    def state(self) -> dict[str, float]:
        """Plain floats for a checkpoint; float64 survives JSON exactly."""
        return {name: float(value) for name, value in self.sums.items()}


class MetricsLog:
    """Where a run's numbers go: output_dir/metrics.jsonl, the trackers of report_to and the progress bar.

    A context manager. `step` > 0 continues a run: rows after that step are dropped, because they will come again.
    """

    def __init__(self, settings: TrainingSettings, total: int, step: int) -> None:
        self.path = Path(settings.output_dir) / METRICS_FILE
        self.stack = ExitStack()
        self.shown: dict[str, str] = {}
        self.reports = open_trackers(settings, self.stack)
        self.bar = self.stack.enter_context(tqdm(total=total, initial=step, disable=settings.disable_tqdm, unit="step"))
        _rewind(self.path, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def advance(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row of numbers, everywhere."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for report in self.reports:
            report(values, step)
        self.shown |= {name: f"{values[name]:.4g}" for name in IN_THE_BAR if name in values}
        self.bar.set_postfix(self.shown)


def read_metrics(output_dir: str | Path) -> list[dict[str, float]]:
    """The rows of output_dir/metrics.jsonl; a last line that a kill cut short is left out.

    So is any other line that a power loss broke, with a word on the screen: a log must not keep a run from going on.
    """
    path = Path(output_dir) / METRICS_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            print(f"{path}, line {number}, is broken ({error}); it is left out")
    return rows


def _rewind(path: Path, step: int) -> None:
    """Keep the rows up to `step` (none at step 0)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_metrics(path.parent) if row["step"] <= step] if step > 0 else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def _precise(device: torch.device | str) -> torch.dtype:
    """float64, which Apple's GPUs do not have."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def check_trackers(settings: TrainingSettings) -> None:
    """Raises ValueError if the package of a tracker in report_to is missing."""
    modules = {"tensorboard": "torch.utils.tensorboard"}
    for name in settings.report_to:
        try:
            importlib.import_module(modules.get(name, name))
        except ImportError as error:
            raise ValueError(
                f"report_to={name!r} needs the package {name}: `pip install {name}`, or leave it out; metrics are "
                f"written to {settings.output_dir}/metrics.jsonl in any case"
            ) from error


def open_trackers(settings: TrainingSettings, stack: ExitStack) -> list[Report]:
    """One function per name in report_to, closed with `stack`; raises ValueError if a tracker does not start."""
    check_trackers(settings)
    openers = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
    reports = []
    for name in settings.report_to:
        try:
            report, close = openers[name](settings)
        except Exception as error:  # no login, no network, a full disk: every tracker has its own types
            raise ValueError(
                f"report_to={name!r} cannot be started ({cause(error)}); set it up, or leave it out"
            ) from error
        stack.callback(close)
        reports.append(report)
    return reports


def _tensorboard(settings: TrainingSettings) -> tuple[Report, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path(settings.output_dir) / "tensorboard"))

    def report(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return report, writer.close


def _wandb(settings: TrainingSettings) -> tuple[Report, Callable[[], None]]:
    import wandb

    run = wandb.init(name=settings.run_name, dir=settings.output_dir, config=vars(settings))
    return (lambda metrics, step: run.log(metrics, step=step)), run.finish


def _trackio(settings: TrainingSettings) -> tuple[Report, Callable[[], None]]:
    import trackio

    trackio.init(project="rlhf_lab", name=settings.run_name, config=vars(settings))
    return (lambda metrics, step: trackio.log(metrics, step=step)), trackio.finish
