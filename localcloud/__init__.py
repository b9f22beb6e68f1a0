"""An AWS of this machine: the same stacks, handlers, jobs and workflows, locally."""
