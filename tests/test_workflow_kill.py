"""The workflow, killed by SIGKILL in every stage, reaches the bits of the undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kill_and_resume_workflow import MOMENTS


def test_killed_in_any_stage_the_loop_resumes_to_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_and_resume_workflow", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(MOMENTS) + 2
    assert [label for label, (killed, _) in results.items() if not killed] == []
    state = results["undisturbed"][1]
    assert [label for label, (_, other) in results.items() if other != state] == []
