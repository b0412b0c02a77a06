"""How every command runs: threads, one sentence for a user's mistake, the exit status."""

import os
import signal
import sys
import time

# torch's threads on a CPU (GNU OpenMP's) wait for one another by spinning, which starves whoever else needs the cores.
# Read once, when torch is imported. Training the demo's mlp16 on two cores took 8 times as long beside two busy
# processes as alone, with this 3 times; alone it costs 6 to 10%.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Of torchrun's processes the first shows bars; tqdm reads this once, when torch imports it.
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"

from collections.abc import Callable

from periscope.errors import UserError

OTHERS = 10  # seconds, in which torchrun ends a process when the first one's mistake has ended that


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; a user's mistake becomes one sentence on stderr and exit status 1, Ctrl-C becomes 130.

    A mistake that all of torchrun's processes make is told once on each machine.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            sys.exit(f"error: {error}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHERS)
        sys.exit(f"error in process {os.environ['RANK']}: {error}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
