"""The stacks, lowest churn first."""
