"""Files that are whole or absent, whoever else writes them, and named when they are not."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lab.common.files import read_whole, write_atomically

WRITER = """
import sys
from pathlib import Path
from rlhf_lab.common.files import write_atomically
for _ in range(60):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 200_000)
"""


def test_two_processes_that_make_the_same_cache_leave_a_whole_one(tmp_path):
    """One would rename what the other is still writing, if both wrote beside it under one name."""
    path, root = tmp_path / "cache.json", Path(__file__).parents[1]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, letter], cwd=root, stderr=subprocess.PIPE)
        for letter in "ab"
    ]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert path.read_text() in ("a" * 200_000, "b" * 200_000) and list(tmp_path.iterdir()) == [path]


def test_text_and_bytes_arrive_as_they_are(tmp_path):
    write_atomically(tmp_path / "new" / "a.txt", "é\n")
    write_atomically(tmp_path / "b.png", b"\x89PNG\r\n")
    assert (tmp_path / "new/a.txt").read_bytes() == b"\xc3\xa9\n" and (
        tmp_path / "b.png"
    ).read_bytes() == b"\x89PNG\r\n"


@pytest.mark.parametrize("content", [b"", b'{"study": "ti', b"\0\0\0", b"\xff\xfe"])
def test_a_file_that_cannot_be_made_again_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is not whole \(.+\): run the study again"):
        read_whole(path, "run the study again")
    write_atomically(path, '{"a": [1]}')
    assert read_whole(path, "run the study again") == {"a": [1]}
