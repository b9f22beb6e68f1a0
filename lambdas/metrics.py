"""What a function counts for its alarms, as CloudWatch reads it from the log (EMF)."""

from __future__ import annotations

from aws_lambda_powertools.metrics import MetricUnit, single_metric

NAMESPACE = "Narrows"


def count(name: str, value: int, function_name: str) -> None:
    """Add so many to the function's metric; 0 writes nothing."""
    if value:
        with single_metric(name=name, unit=MetricUnit.Count, value=value, namespace=NAMESPACE) as metric:
            metric.add_dimension("FunctionName", function_name)
