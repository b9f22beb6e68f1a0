"""The CDK app: what `cdk deploy` puts into an account."""

import os
import sys
from pathlib import Path

_NODE = Path(sys.prefix) / "bin" / "node"
if _NODE.exists():  # the pinned Node of the environment, rather than whatever the machine has on its path
    os.environ.setdefault("JSII_NODE", str(_NODE))
