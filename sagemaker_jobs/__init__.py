"""Training and evaluation jobs, one folder each: `python -m sagemaker_jobs.<job>` under SageMaker's contract.

Importing this package before numpy limits its linear algebra to one thread: thousands of small systems are
solved eight times faster so, and jobs that run side by side do not fight for the processors. LightGBM's
threads sleep while they wait, for the same reason.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
