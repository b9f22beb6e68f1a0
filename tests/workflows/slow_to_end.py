"""A process that takes four seconds to end and then leaves the file that its command line names."""

import signal
import sys
import threading
import time
from pathlib import Path

from localcloud.processes import report_ready

stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
report_ready()
stopped.wait()
time.sleep(4.0)
Path(sys.argv[1]).touch()
