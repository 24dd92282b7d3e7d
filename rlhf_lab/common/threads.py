"""How torch's threads wait for each other, on a machine that does other things as well.

OpenMP's threads spin while they wait. Where another process wants the same core, the spinning keeps that core from the
very thread that is waited for, and a step takes many times as long. Passive threads sleep, and the core is free.

OMP_WAIT_POLICY is OpenMP's own variable (OpenMP 5.2, section 21.7), read by GNU's runtime and by LLVM's and Intel's
when they are loaded, that is with torch. The runtimes' finer ones, GOMP_SPINCOUNT and KMP_BLOCKTIME, win over it there.
"""

import os
from collections.abc import MutableMapping

THREAD_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE"}


def set_thread_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts THREAD_DEFAULTS into the environment, in place; what the user has set there stays.

    It works for this process only before torch is imported, and for all processes that are started from it.
    """
    for name, value in THREAD_DEFAULTS.items():
        environment.setdefault(name, value)
